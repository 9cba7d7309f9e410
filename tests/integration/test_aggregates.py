"""What is given to outsiders: no figure is about few people, nor tells one that is by subtraction."""

from __future__ import annotations

import csv
import io
import json
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from clickwake.aggregates import FIGURES, safe, sql, with_noise
from clickwake.cli import app
from stream.adapters.database import clickhouse
from stream.settings import Settings
from tests.support.database import Database


@given(st.integers(0, 100), st.lists(st.floats(0, 1), max_size=3), st.integers(2, 30))
def test_no_figure_is_about_few(people: int, shares: list[float], k: int) -> None:
    row = {"item": "i", "people": people} | {f"part{n}": int(share * people) for n, share in enumerate(shares)}
    kept = safe(row, k)
    assert (kept is None) == (people < k)
    shown = [value for name, value in (kept or {}).items() if name.startswith("part") and value is not None]
    for value in shown:
        assert k <= value <= people - k
        assert all(value == other or abs(value - other) >= k for other in shown)


@pytest.fixture
def stored(database: Database, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("CLICKWAKE_CLICKHOUSE__PORT", str(database.settings.port))
    monkeypatch.setenv("CLICKWAKE_CLICKHOUSE__DATABASE", database.settings.database)
    return Settings(clickhouse=database.settings)


def store(settings: Settings, seen: list[tuple[str, str, str, str]], tenant: str = "demo") -> None:
    """Each: item, account, device and name of an event that happens now."""
    now = datetime.now(UTC)
    with closing(clickhouse.open_client(settings.clickhouse)) as client:
        names = ["tenant", "message_id", "user", "event", "product_id", "timestamp", "partition_time", "broker_time"]
        rows = [(tenant, f"m{n}", account or device, event, item, now, now, now)
                for n, (item, account, device, event) in enumerate(seen)]  # fmt: skip
        client.insert("event_products", [(*row, 0) for row in rows], column_names=[*names, "line"])
        client.insert("events", [(*row, account, device) for row, (_, account, device, _) in zip(rows, seen, strict=True)],
                      column_names=[*names, "user_id", "anonymous_id"])  # fmt: skip


def bounded(settings: Settings, name: str, most: int, tenant: str = "demo") -> dict[Any, list[int]]:
    """By group, what noise is put on."""
    parameters = {"tenant": tenant, "since": datetime(2020, 1, 1, tzinfo=UTC), "most": most}
    with closing(clickhouse.open_client(settings.clickhouse)) as client:
        rows = client.query(sql(FIGURES[name], bounded=True), parameters=parameters).result_rows
    width = len(FIGURES[name].groups)
    return {row[:width]: list(row[width:]) for row in rows}


def told(*arguments: str) -> list[dict[str, str]]:
    done = CliRunner().invoke(app, ["aggregates", *arguments])
    assert done.exit_code == 0, done.output
    return list(csv.DictReader(io.StringIO(done.stdout)))


def test_a_person_with_several_ids_is_one(stored: Settings) -> None:
    seen = [("far", f"u{n}", f"phone{n}", "Product Viewed") for n in range(10)]  # ten people, before and after signing in
    seen += [("far", "", f"phone{n}", "Product Viewed") for n in range(10)]
    seen += [("near", "", f"window{n}", "Product Viewed") for n in range(30)]  # one person, as far as anybody knows
    seen += [("shared", f"u{n}", "kiosk", "Product Viewed") for n in range(10)]
    seen += [("kiosk", "", "kiosk", "Product Viewed")] + [("kiosk", f"u{n}", "", "Order Completed") for n in range(9)]
    store(stored, seen)
    assert told("items", "--k", "10") == [{"item": item, "people": "10", "buyers": ""} for item in ("far", "shared")]
    assert told("items", "--k", "11") == []
    assert told("items", "--k", "30", "--guests") == [{"item": "near", "people": "30", "buyers": ""}]


def test_rows_of_few_people_are_left_out(stored: Settings) -> None:
    now = datetime.now(UTC)
    seen = [("popular", f"u{n}", "", "Product Viewed") for n in range(50)]
    seen += [("rare", f"u{n}", "", "Product Viewed") for n in range(4)]
    seen += [("popular", f"u{n}", "", "Order Completed") for n in range(12)] + [("rare", "u0", "", "Order Completed")]
    seen += [("popular", "", "", "Product Viewed")] * 30  # without an id
    store(stored, seen)
    done = CliRunner().invoke(app, ["aggregates", "items", "--k", "10"])
    assert list(csv.DictReader(io.StringIO(done.stdout))) == [{"item": "popular", "people": "50", "buyers": "12"}]
    assert "1 rows of 2" in done.stderr
    done = CliRunner().invoke(app, ["aggregates", "funnel", "--k", "20", "--json"])
    assert json.loads(done.stdout) == {"day": str(now.date()), "people": 50, "adding": None, "buyers": None}
    assert told("hours", "--k", "51") == []


def test_noise_has_the_size_that_was_paid_for() -> None:
    true = [40] * 4_000
    told = np.array(with_noise(true, sensitivity=10, epsilon=2.0))
    assert abs(told.mean() - 40) < 0.5 and abs(np.abs(told - 40).mean() - 5.0) < 0.4, "the mean of a Laplace of scale 5"


def test_with_differential_privacy_nobody_counts_more_than_they_may(stored: Settings) -> None:
    store(stored, [*((f"i{n}", "everywhere", "", "Order Completed") for n in range(100)),
                   *(("i7", f"u{n}", "", "Product Viewed") for n in range(60))])  # fmt: skip
    now = datetime.now(UTC)
    with closing(clickhouse.open_client(stored.clickhouse)) as client:
        items = [("demo", f"i{n}", "x", now) for n in range(100)] + [("demo", "unseen", "x", now)]
        client.insert("items", items, column_names=["tenant", "item_id", "title", "broker_time"])
    found = bounded(stored, "items", most=5)
    assert sum(buyers for _, buyers in found.values()) == 5 and found["i7",][0] >= 60
    for name, rows_wanted, figures in (("items", 101, {"people", "buyers"}), ("funnel", 31, {"people", "adding", "buyers"}),
                                       ("hours", 168, {"people"})):  # fmt: skip
        done = CliRunner().invoke(app, ["aggregates", name, "--epsilon", "5", "--json"])
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert done.exit_code == 0 and len(rows) == rows_wanted, "which groups there are tells nothing"
        assert figures <= rows[0].keys() and all(row[figure] >= 0 for row in rows for figure in figures)
        assert "epsilon 5 spent" in done.stderr


@pytest.mark.parametrize("name", FIGURES)
def test_with_differential_privacy_an_account_changes_no_more_than_the_noise_pays_for(stored: Settings, name: str) -> None:
    """Whoever is taken out: one who shared devices would else decide whose the guests on them are."""
    devices = [f"kiosk{n}" for n in range(8)]
    seen = [(f"i{n}", "", device, "Order Completed") for device in devices for n in range(20)]
    seen += [("i0", f"u{n}", device, "Product Added") for n, device in enumerate(devices)]
    seen += [("i0", "shares", device, "Order Completed") for device in devices]
    store(stored, seen)
    everybody = bounded(stored, name, most=2)
    nothing = [0] * (1 + len(FIGURES[name].done))
    for gone in ("shares", "u3"):
        store(stored, [one for one in seen if one[1] != gone], tenant=gone)
        others = bounded(stored, name, most=2, tenant=gone)
        changed = sum(abs(one - other) for group in everybody | others
                      for one, other in zip(everybody.get(group, nothing), others.get(group, nothing), strict=True))
        assert 0 < changed <= 2 * len(nothing), gone
    assert max(people for people, *_ in everybody.values()) == 9, "accounts alone"


def test_noise_pays_for_no_guests(stored: Settings) -> None:
    refused = CliRunner().invoke(app, ["aggregates", "items", "--epsilon", "1", "--guests"])
    assert refused.exit_code == 2 and "accounts alone" in refused.stderr


def test_what_may_not_be_published_beside_it_is_said(stored: Settings) -> None:
    """Guests that are few are the difference between two figures of many."""
    store(stored, [*(("popular", f"u{n}", "", "Product Viewed") for n in range(20)),
                   *(("popular", "", f"window{n}", "Product Viewed") for n in range(2))])  # fmt: skip
    assert [told("items", *more)[0]["people"] for more in ((), ("--guests",))] == ["20", "22"]
    for more in ([], ["--guests"]):
        assert "publish one: " in CliRunner().invoke(app, ["aggregates", "items", *more]).stderr
