"""What experiments did to users, on a real engine: the same as reckoned from the raw records, the same after a replay, and
what the command says of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import log, sqrt
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from clickwake import experiments as command
from schemas import topics
from stream.core.experiments.effects import MEASURES, judged
from stream.core.experiments.experiments import Arm, Experiment
from stream.core.statistics.confidence import SOME_MIN, USERS_MIN, Sample
from stream.settings import Api, Settings
from tests.integration.test_sink_tables import alert as churn_alert
from tests.integration.test_sink_tables import recommendation
from tests.integration.test_strategy_view import said
from tests.support.database import Database, on

START, WEEK, MONTH = datetime(2026, 1, 1, tzinfo=UTC), timedelta(days=7), timedelta(days=28)
END = START + timedelta(days=72)  # of what is known
USERS = 260
Record = tuple[str, str, datetime, dict[str, Any]]  # event, user, time, properties


class World:
    """People in two arms who see answers, click, order, give back, complain and are alerted about, at any time: before they
    saw anything, at that very moment, within their 7 days and after; some saw nothing, some are not 7 days in it yet."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.decisions: list[dict[str, Any]] = []
        self.records: list[Record] = []
        self.alerts: list[tuple[str, datetime, str]] = []
        self.opinions: list[tuple[str, datetime, float | None]] = []
        for n in range(USERS):
            user, begin = f"u{n}", START + timedelta(minutes=int(rng.integers(30 * 1440, 70 * 1440)))
            for k in range(int(rng.integers(1, 4))):
                arm = "ab"[n % 2] if k == 0 or rng.random() < 0.8 else "ba"[n % 2]
                self.decisions.append(recommendation(f"r{n}-{k}", user, "05T10:00", "A") | {
                    "scenario": "for_you", "candidates": 2, "served_at": begin.isoformat(), "experiment": "e", "arm": arm})
                at = begin + timedelta(hours=int(rng.integers(0, 200)) * bool(k))
                if k or rng.random() < 0.9:
                    self.records.append(("Product List Viewed", user, at, {"recommendation_id": f"r{n}-{k}"}))
                if rng.random() < 0.4:
                    later = at + timedelta(hours=int(rng.integers(0, 400)))
                    self.records.append(("Product Clicked", user, later, {"recommendation_id": f"r{n}-{k}"}))
            for k in range(int(rng.poisson(3 if n % 2 else 2))):
                at = begin + timedelta(hours=int(rng.integers(-800, 240)))
                order = {"order_id": f"o{n}-{k}", "revenue": round(float(rng.lognormal(3, 1)), 2)}
                self.records.append(("Order Completed", user, at, order))
                if rng.random() < 0.3:  # the same order said again under another message, or given back
                    again = at + timedelta(hours=1)
                    more = ("Order Completed", user, again, order | {"revenue": 1.0}) if rng.random() < 0.3 else (
                        "Order Refunded", user, again, order | {"revenue": 2.5})  # fmt: skip
                    self.records.append(more)
            if rng.random() < 0.3:
                state = "raised" if rng.random() < 0.7 else "cleared"
                self.alerts.append((user, begin + timedelta(hours=int(rng.integers(-50, 250))), state))
            if rng.random() < 0.5:
                value = float(rng.choice([0.0, 0.25, 0.5, 1.0])) if rng.random() < 0.9 else None
                self.opinions.append((user, begin + timedelta(hours=int(rng.integers(-50, 250))), value))

        self.records = [one for one in self.records if one[2] <= END]

    def stored(self) -> list[Any]:
        events = [{"messageId": f"m{n}", "type": "track", "event": name, "userId": user, "tenant": "shop",
                   "timestamp": at.isoformat(), "properties": properties}
                  for n, (name, user, at, properties) in enumerate(self.records)]  # fmt: skip
        alerts = [churn_alert(f"a{n}", user, "01T00:00", 14, state) | {"as_of_ts": at.isoformat()}
                  for n, (user, at, state) in enumerate(self.alerts)]  # fmt: skip
        opinions = [said(f"p{n}", 1, user, satisfaction=value) | {"said_at": at}
                    for n, (user, at, value) in enumerate(self.opinions)]  # fmt: skip
        return [*on(topics.EVENTS, events), *on(topics.DECISIONS, self.decisions), *on(topics.CHURN_ALERTS, alerts),
                *on(topics.OPINIONS, opinions)]  # fmt: skip

    def users(self) -> dict[str, tuple[Any, ...]]:
        """User → (arm, closed, clicked, orders, revenue, alerted, dissatisfied, orders before, revenue before)."""
        of = {one["recommendation_id"]: one for one in self.decisions}
        newest = max(at for _, _, at, _ in self.records)
        first: dict[str, tuple[datetime, str]] = {}
        shown: set[str] = set()
        for name, user, at, properties in self.records:
            if name == "Product List Viewed":
                ident = properties["recommendation_id"]
                shown.add(ident)
                first[user] = min(first.get(user, (at, ident)), (at, ident))
        found = {}
        for user, (seen, ident) in first.items():
            acts = [one for one in self.records if one[1] == user]
            clicked = {one[3]["recommendation_id"]: one[2] for one in sorted(acts, key=lambda one: one[2], reverse=True)
                       if one[0] == "Product Clicked" and one[3]["recommendation_id"] in shown}  # fmt: skip
            after = [one for one in acts if one[0].startswith("Order ") and seen < one[2] <= seen + WEEK]
            before = [one for one in acts if one[0].startswith("Order ") and seen - MONTH < one[2] <= seen]
            found[user] = (
                of[ident]["arm"], int(seen + WEEK < newest), int(any(at <= seen + WEEK for at in clicked.values())),
                *_bought(after),
                int(any(who == user and state == "raised" and seen < at <= seen + WEEK for who, at, state in self.alerts)),
                int(any(who == user and value is not None and value < 0.5 and seen < at <= seen + WEEK
                        for who, at, value in self.opinions)), *_bought(before),
            )  # fmt: skip
        return found

    def samples(self) -> dict[tuple[str, str], Sample]:
        rows = [one for one in self.users().values() if one[1]]
        found = {}
        for arm in "ab":
            table = np.array([one[2:] for one in rows if one[0] == arm], dtype=np.float64)  # (U, 7)
            for at, metric in enumerate(("clicked", "orders", "revenue", "alerted", "dissatisfied")):
                values = table[:, at]
                past = table[:, 5] if metric == "orders" else table[:, 6] if metric == "revenue" else np.zeros(len(table))
                both = np.cov(values, past)
                found[arm, metric] = Sample(len(values), float(values.mean()), float(both[0, 0]), int((values != 0).sum()),
                                            float(past.mean()), float(both[1, 1]), float(both[0, 1]))  # fmt: skip
        return found


def ends(metric: str, one: Sample) -> Any:
    """Of the confidence sequence: a share's with one user more who did and one who did not; else of enough users only."""
    p, spread, is_share = (one.some + 1) / (one.n + 2), one.n * 0.085**2 + 1, metric not in ("orders", "revenue")
    variance = p * (1 - p) if is_share else one.variance
    half = sqrt(variance * 2 * spread / (one.n * (spread - 1)) * log(sqrt(spread) / 0.05))
    if is_share:
        return pytest.approx((max(0.0, one.mean - half), min(1.0, one.mean + half)))
    return pytest.approx((one.mean - half, one.mean + half)) if one.n >= USERS_MIN and one.some >= SOME_MIN else (None, None)


def _bought(acts: list[Record]) -> tuple[int, float]:
    money = sum(-one[3]["revenue"] if one[0] == "Order Refunded" else one[3]["revenue"] for one in acts)
    return len({one[3]["order_id"] for one in acts if one[0] == "Order Completed"}), money


def test_the_views_say_what_the_records_add_up_to(database: Database) -> None:
    world = World(1)
    records = world.stored()
    for _ in range(2):  # a replay changes nothing
        database.store(records)
        found = database.rows("SELECT user_id, arm, closed, clicked, orders, revenue, alerted, dissatisfied, orders_before, "
                              "revenue_before FROM experiment_users WHERE tenant = 'shop' AND experiment = 'e'")  # fmt: skip
        users = world.users()
        assert {row[0] for row in found} == users.keys() and len(found) == len(users) < USERS
        for user, arm, *row in found:
            assert arm == users[user][0] and row == pytest.approx(list(users[user][1:])), user
        rows = database.rows("SELECT arm, metric, users, pending, mean, low, high FROM experiment_metrics")
        assert len(rows) == 2 * len(MEASURES)
        for (arm, metric), one in world.samples().items():
            (row,) = (row for row in rows if row[:2] == (arm, metric))
            assert row[2] == one.n and row[2] + row[3] == sum(user[0] == arm for user in users.values())
            assert row[4] == pytest.approx(one.mean) and row[5:] == ends(metric, one)
        records = records[::-1]
    parts = [sum(user[at] for user in users.values()) for at in range(1, 7)]
    assert all(part > 0 for part in parts) and parts[0] < len(users), "there is some of everything"


def test_a_user_or_two_are_not_sure_of_themselves(database: Database) -> None:
    """One who clicked and ordered, and one who is not 7 days in it."""
    shown = [{"messageId": f"m{n}", "type": "track", "event": name, "userId": user, "tenant": "shop",
              "timestamp": f"2026-01-{day:02}T10:00:00Z", "properties": {"recommendation_id": user, **more}}
             for n, (name, user, day, more) in enumerate((
                 ("Product List Viewed", "u1", 5, {}), ("Product Clicked", "u1", 6, {}),
                 ("Order Completed", "u1", 6, {"order_id": "o", "revenue": 9.0}), ("Product List Viewed", "u2", 13, {})))]
    decisions = [recommendation(user, user, "05T10:00", "A") | {
        "scenario": "for_you", "candidates": 2, "served_at": "2026-01-05T09:00:00Z", "experiment": "e", "arm": arm}
        for user, arm in (("u1", "a"), ("u2", "b"))]  # fmt: skip
    database.store([*on(topics.DECISIONS, decisions), *on(topics.EVENTS, shown)])
    found = database.rows("SELECT arm, metric, users, mean, low, high FROM experiment_metrics WHERE metric != 'orders' "
                          "ORDER BY arm, metric")  # fmt: skip
    assert found == [(arm, metric, int(arm == "a"), mean, *(known or (None, None))) for arm, metric, mean, known in (
        ("a", "alerted", 0.0, (0.0, 1.0)), ("a", "clicked", 1.0, (0.0, 1.0)), ("a", "dissatisfied", 0.0, (0.0, 1.0)),
        ("a", "revenue", 9.0, None), ("b", "alerted", 0.0, (0.0, 1.0)), ("b", "clicked", 0.0, (0.0, 1.0)),
        ("b", "dissatisfied", 0.0, (0.0, 1.0)), ("b", "revenue", 0.0, None))]  # fmt: skip


def test_the_command_judges_them_by_what_the_file_says(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "experiments.yml"
    settings = Settings(_env_file=None, clickhouse=database.settings, api=Api(experiments=path))  # type: ignore[call-arg]
    monkeypatch.setattr(command, "load_settings", lambda: settings)
    assert command.results(as_json=False) == 0 and "nobody has seen an answer" in capsys.readouterr().out
    world = World(2)
    database.store(world.stored())
    for text, control, primary, listed in (
        ("experiments: [{name: e, primary: revenue, arms: [{name: b}, {name: a}]}]", "b", "revenue", True),
        ("experiments: []", "a", "clicked", False),
    ):
        path.write_text(text)
        assert command.results(as_json=True) == 0
        (ran,) = msgspec.json.decode(capsys.readouterr().out)
        other = "a" if control == "b" else "b"
        assert (ran["control"], ran["primary"], ran["listed"]) == (control, primary, listed)
        arms = (Arm(name=control), Arm(name=other))
        (wanted,) = judged(Experiment(name="e", arms=arms, primary=primary), world.samples())  # type: ignore[arg-type]
        (said,) = ran["arms"]
        assert (said["arm"], said["against"], said["decision"]) == (other, control, wanted.decision)
        for one, effect in zip(said["effects"], wanted.effects, strict=True):
            assert one == pytest.approx(msgspec.to_builtins(effect), abs=1e-9)
        seen = {arm: ran["users"][arm] + ran["pending"][arm] for arm in "ab"}
        assert ran["sizes"] is None if not listed else (ran["sizes"]["users"], ran["sizes"]["as_assigned"]) == (seen, True)
    monkeypatch.setenv("COLUMNS", "200")
    assert command.results(as_json=False) == 0
    shown = capsys.readouterr().out
    assert "not in the file any more" in shown and "b against a: " in shown and "guardrail" in shown
    path.write_text("experiments: [{name: e, arms: [{name: a, weight: 9}, {name: b}]}]")
    assert command.results(as_json=False) == 0
    shown = capsys.readouterr().out
    assert "not as large as they were made" in shown and "(90% were assigned)" in shown
    assert "b against a: not as assigned" in shown
    path.write_text("experiments: 3")
    assert command.results(as_json=False) == 1
