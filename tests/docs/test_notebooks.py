"""The notebooks run, on a small shop whose truth is known, and find what is there."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from producers.simulate.run import Options, Simulation
from schemas import topics
from schemas.events import user_of
from stream.adapters.database import clickhouse as adapter
from stream.settings import ClickHouse, Settings
from stream.sink.batch import freeze
from stream.sink.consumer import row_functions
from stream.sink.writer import Writer

nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SHOPPERS, DAYS, START = 40, 28, datetime(2026, 3, 2, tzinfo=UTC)
USERS = 600  # of the experiment
ORDERING = {("a", True): 0.2, ("b", True): 0.6, ("a", False): 0.4, ("b", False): 0.1}  # by arm, and who had ordered before
APPENDED_MS = 1_800_000_000_000
EVENT = {"type": "track", "tenant": "demo"}


@pytest.fixture(scope="module")
def shop(clickhouse: ClickHouse, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    """Simulated visits, alerts about the shoppers, answers of two bundles, and an experiment with a planted effect."""
    settings = clickhouse.model_copy(update={"database": "notebooks"})
    adapter.migrate(settings, wait_s=10)
    home = tmp_path_factory.mktemp("notebooks")
    visits = simulated(home)
    written = {topics.EVENTS: [*visits, *experiment_events()], topics.CHURN_ALERTS: alerts(visits),
               topics.RECOMMENDATIONS: recommendations(visits), topics.DECISIONS: decisions(),
               topics.SEGMENT_CHANGES: changes(visits)}  # fmt: skip
    writer = Writer(settings, threading.Event())
    functions = row_functions(Settings(home=home))
    for topic, values in written.items():
        records = [SimpleNamespace(topic=topic.name("clickwake"), partition=0, offset=offset, timestamp=APPENDED_MS + offset,
                                   key=b"demo/k", value=msgspec.json.encode(value), headers=())
                   for offset, value in enumerate(values)]  # fmt: skip
        assert writer.write(freeze(records, functions)) == []
    writer.close()
    yield settings


def simulated(home: Path) -> list[dict[str, Any]]:
    file = home / "events.jsonl.gz"
    Simulation(Settings(home=home), Options(shoppers=SHOPPERS, days=DAYS, to=str(file), items=100, start=START)).run()
    with gzip.open(file) as lines:
        return [json.loads(line) for line in lines]


def by_user(visits: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for one in visits:
        found.setdefault(user_of(one), []).append(one)
    return found


def alerts(visits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In the middle of the time, about everybody: surer about those who have been silent for longer."""
    at, found = START + timedelta(days=DAYS / 2), []
    for user, events in by_user(visits).items():
        times = [when(one) for one in events if when(one) < at]
        if times:
            p = min(0.9, 0.1 + (at - max(times)).days / DAYS * 2)
            found.append({"alert_id": f"a-{user}", "tenant": "demo", "user_id": user, "state": "raised", "probability": p,
                          "horizon_days": 7, "interval": [p / 2, 1.0], "reasons": ["silent"], "last_event_ts": max(times),
                          "as_of_ts": at, "model_version": "v1"})  # fmt: skip
    return found


def recommendations(visits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first bundle knew the next item one time in ten, the second one half of the time."""
    draw = random.Random(1)
    found: list[dict[str, Any]] = []
    for user, events in by_user(visits).items():
        viewed = [(when(one), one["properties"]["product_id"]) for one in events if one.get("event") == "Product Viewed"]
        for (at, _), (_, following) in itertools.pairwise(viewed):
            version, knows = ("v1", 0.1) if at < START + timedelta(days=DAYS / 2) else ("v2", 0.5)
            item = following if draw.random() < knows else "nothing"
            found.append({"recommendation_id": f"r-{len(found)}", "tenant": "demo", "user_id": user, "as_of_event_id": "m",
                          "as_of_ts": at, "model_version": version,
                          "items": [{"item_id": item, "score": 1.0, "source": "model", "reasons": []}]})  # fmt: skip
    return found


def people() -> Iterator[tuple[int, str, bool, bool]]:
    """(number, arm, ordered before, ordered): the second arm is good for regulars and bad for the others."""
    draw = random.Random(2)
    for number in range(USERS):
        arm, regular = draw.choice(("a", "b")), number % 2 == 0
        yield number, arm, regular, draw.random() < ORDERING[arm, regular]


def answers() -> Iterator[tuple[str, int, str, str, datetime]]:
    """(id, number, experiment, arm, when): before, everybody was in another experiment; later some are answered again."""
    for number, arm, regular, _ in people():
        yield f"before-{number}", number, "before", "cd"[number // 2 % 2], START - timedelta(days=3)
        yield f"x-{number}", number, "arms", arm, START
        if arm == "a" and not regular:
            yield f"again-{number}", number, "arms", arm, START + timedelta(hours=2)


def decisions() -> list[dict[str, Any]]:
    return [{"recommendation_id": ident, "tenant": "demo", "user_id": f"x{number}", "as_of_event_id": "m",
             "as_of_ts": at, "model_version": "v1", "scenario": "for_you", "candidates": 1, "served_at": at,
             "experiment": name, "arm": arm, "items": [{"item_id": "A", "score": 1.0, "source": "model", "reasons": []}]}
            for ident, number, name, arm, at in answers()]  # fmt: skip


def experiment_events() -> Iterator[dict[str, Any]]:
    """Who is answered again has ordered in between: that makes no regular of them, for an arm may have led to it."""
    seen: dict[int, list[tuple[str, datetime, str]]] = {}
    for ident, number, _, _, at in answers():
        seen.setdefault(number, []).append(("Product List Viewed", at, ident))
    for number, arm, regular, ordered in people():
        did = seen[number] + [("Order Completed", START, f"x-{number}")] * ordered
        did += [("Order Completed", START + timedelta(hours=1), "")] * (arm == "a" and not regular)
        for what, at, answer in did + [("Order Completed", START - timedelta(days=1), "")] * regular:
            yield EVENT | {"messageId": f"{number}-{what}-{answer}", "userId": f"x{number}", "event": what, "timestamp": at,
                           "properties": {"recommendation_id": answer} if answer else {}}  # fmt: skip


def changes(visits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Half of the shoppers enter a segment at their first visit, and every fourth leaves it a week later."""
    found = []
    for n, (user, events) in enumerate(by_user(visits).items()):
        for number in range(1, 1 + (n % 2 == 0) + (n % 4 == 0)):
            at = when(events[0]) + timedelta(days=7 * (number - 1))
            found.append({"change_id": f"{user}-{number}", "tenant": "demo", "user_id": user, "segment": "lookers",
                          "change": "entered" if number % 2 else "left", "number": number, "values": {"views_7d": 1.0},
                          "as_of_event_id": "m", "as_of_ts": at, "rules_version": "r", "model_version": "v1"})  # fmt: skip
    return found


def when(event: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(event["timestamp"])


def run(path: Path, shop: ClickHouse, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in {"HOST": shop.host, "PORT": str(shop.port), "DATABASE": shop.database}.items():
        monkeypatch.setenv(f"CLICKWAKE_CLICKHOUSE__{name}", value)
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(ROOT)}}
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources=where).execute()
    return notebook


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) >= 4
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


AS_RULED = sum(arm == "ab"[regular] for _, arm, regular, _ in people())  # who got what the rule by the user gives
# notebook → charts, and what its answers say of the truth that was planted
FOUND = {
    "funnel_and_segments": (3, ["lookers"]),
    "alerts_and_experiments": (2, ["v1", "arms"]),
    "models_and_policies": (2, ["'by the user': 'better'", f" {AS_RULED}"]),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:zmq.*", "ignore::DeprecationWarning:jupyter_client.*")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_finds_what_is_there(path: Path, shop: ClickHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = run(path, shop, monkeypatch)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output["data"] for output in outputs if "data" in output]
    charts, texts = FOUND[path.stem]
    assert sum("image/png" in one for one in shown) == charts
    said = "\n".join(one.get("text/plain", "") for one in shown)
    assert all(text in said for text in texts), said
