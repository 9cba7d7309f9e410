"""`make demo`: the whole of Clickwake on one machine, on a simulated shop whose truth is known.

1 start broker, ClickHouse and workers; 2 import simulated history; 3 train a first model and release it; 4 stream live
shoppers through, who see their recommendations, with a live view; 5 release a retrained model meanwhile; 6 sum up from
SQL and hold the recommendations and alerts against the planted truth; 7 stop everything, unless asked to stay up.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import clickhouse_connect
import msgspec
from kafka import KafkaConsumer, TopicPartition
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import Progress
from rich.table import Table

from clickwake.up import Local
from producers.simulate.feed import Feed
from producers.simulate.mess import Record
from producers.simulate.targets import KafkaTarget
from producers.simulate.world import World
from schemas import topics
from schemas.events import key
from schemas.outputs import ChurnAlert, Recommendation
from stream.settings import Settings

SHOPPERS, HISTORY_DAYS, LIVE_DAYS, SEED = 400, 90, 30, 7
LIVE_SECONDS = 75.0  # 30 days of shopping in this time
RETRAIN_AT = 0.1  # share of the live part after which a model is retrained
HOLD_AT = 0.7  # share after which shoppers wait for it, so that it serves the rest on a slow machine too
LAG_TIMEOUT_S = 180.0
TENANT = "demo"
BUDGET_S = "40"  # of the user encoder, each time: enough to beat popularity clearly, short enough to watch


class DemoFailed(RuntimeError):
    """A step did not come to its end; the text says which and where its log is."""


class Watch:
    """Follows the outputs and the workers' metrics for the live view."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.recommendations = self.alerts = 0
        self.latest: Recommendation | None = None
        self.versions: dict[str, int] = {}
        self._consumer: Any = KafkaConsumer(bootstrap_servers=settings.kafka.bootstrap_servers, group_id=None,
                                            auto_offset_reset="earliest", enable_auto_commit=False)  # fmt: skip
        prefix = settings.kafka.topic_prefix
        self._alerts_topic = topics.CHURN_ALERTS.name(prefix)
        names = (topics.RECOMMENDATIONS.name(prefix), self._alerts_topic)
        self._consumer.assign([TopicPartition(name, p) for name in names for p in range(settings.kafka.partitions)])

    def poll(self) -> None:
        """Take what is new."""
        for tp, records in self._consumer.poll(timeout_ms=50, max_records=5_000).items():
            if tp.topic == self._alerts_topic:
                self.alerts += len(records)
                continue
            self.recommendations += len(records)
            self.latest = msgspec.json.decode(records[-1].value, type=Recommendation)
            for version in {self.latest.model_version}:
                self.versions[version] = self.versions.get(version, 0) + len(records)

    def lag(self) -> int:
        """Events the personalize group has not committed yet."""
        name = topics.EVENTS.name(self.settings.kafka.topic_prefix)
        return sum(group_lag(self.settings, f"{self.settings.kafka.topic_prefix}-personalize", name).values())

    def close(self) -> None:
        self._consumer.close()


def group_lag(settings: Settings, group: str, topic: str) -> dict[int, int]:
    """Partition → records after the group's committed offset."""
    consumer = KafkaConsumer(bootstrap_servers=settings.kafka.bootstrap_servers, group_id=group, enable_auto_commit=False)
    try:
        parts = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic) or ())]
        ends = consumer.end_offsets(parts)
        return {tp.partition: ends[tp] - (consumer.committed(tp) or 0) for tp in parts}
    finally:
        consumer.close()


def metric(settings: Settings, name: str) -> dict[str, float]:
    """A metric of the personalize processes, label text → sum over processes; empty while none answers."""
    found: dict[str, float] = {}
    for path in (settings.home / "run").glob("personalize-*.json"):
        port = json.loads(path.read_text())["metrics_port"]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as answer:  # loopback
                text = answer.read().decode()
        except OSError:
            continue  # a process that has ended leaves its file behind
        for line in text.splitlines():
            if line.startswith(name + "{"):
                label, value = line[len(name) :].rsplit(" ", 1)
                found[label] = found.get(label, 0.0) + float(value)
    return found


def await_zero(console: Console, what: str, count: Callable[[], int], log: Path) -> None:
    """Wait with a spinner until nothing is left to do."""
    deadline = time.monotonic() + LAG_TIMEOUT_S
    with console.status(what) as status:
        while (left := count()) > 0:
            if time.monotonic() > deadline:
                raise DemoFailed(f"{what}: {left} left after {LAG_TIMEOUT_S:.0f} s; see {log}")
            status.update(f"{what}: {left:,} left")


def run(home: Path, *, keep: bool = False, console: Console | None = None) -> dict[str, Any]:
    """The demo; returns the summary it printed. Raises `DemoFailed`, `StartError`."""
    console = console or Console()
    started = time.monotonic()
    console.rule("1 · broker, ClickHouse, workers")
    with Local(home, say=lambda text: console.print(f"  {text}", style="dim")) as local:
        settings = local.settings
        end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
        days = HISTORY_DAYS + LIVE_DAYS
        world = World(SEED, SHOPPERS, days, end - timedelta(days=days), tenant=TENANT)
        live_from = end - timedelta(days=LIVE_DAYS)
        console.rule("2 · history: one shop, its catalog, its shoppers")
        space = _encoder(console, home)
        _import(console, settings, world, live_from, space)
        console.rule("3 · a first model")
        first = _train(console, home, "--source", "clickhouse", "--release")
        await_zero(console, "release taken", lambda: 0 if _runs(settings, first) else 1, home / "logs" / "personalize.log")
        console.rule("4 · live shoppers")
        with KafkaTarget(settings, lambda text: None) as target:
            second = _live(console, settings, home, world, live_from, target)
        await_zero(console, "live events folded", lambda: _lag(settings, "-personalize"), home / "logs" / "personalize.log")
        await_zero(console, "outputs stored", lambda: _sink_lag(settings), home / "logs" / "sink.log")
        console.rule("6 · what happened, by SQL, against the truth")
        summary = summarize(settings, world, end) | {"models": [first, second], "seconds": round(time.monotonic() - started)}
        _show(console, summary)
        (home / "demo.json").write_text(json.dumps(summary, indent=2, default=str))
        if keep:
            console.print("Clickwake stays up; Ctrl-C ends it.")
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                console.print("stopping")
    return summary


def _import(console: Console, settings: Settings, world: World, until: datetime, space: str) -> None:
    with KafkaTarget(settings, lambda text: None) as target, Progress(console=console, transient=True) as progress:
        target.catalog(world.items())
        task = progress.add_task("history", total=None)
        sent = 0
        for event in world.history(until):
            target.send(Record(key(TENANT, event.get("userId") or event["anonymousId"]), msgspec.json.encode(event)))
            sent += 1
            if sent % 1_000 == 0:
                progress.update(task, description=f"history: {sent:,} events")
    logs = settings.home / "logs"
    await_zero(console, "history folded", lambda: _lag(settings, "-personalize"), logs / "personalize.log")
    await_zero(console, "history stored", lambda: _sink_lag(settings), logs / "sink.log")
    items = topics.ITEMS.name(settings.kafka.topic_prefix)
    group = f"{settings.kafka.topic_prefix}-catalog-{space}"
    await_zero(console, "items encoded", lambda: sum(group_lag(settings, group, items).values()), logs / "catalog.log")
    console.print(f"  {sent:,} events, {len(world.items()):,} items")


def _lag(settings: Settings, suffix: str) -> int:
    prefix = settings.kafka.topic_prefix
    return sum(group_lag(settings, prefix + suffix, topics.EVENTS.name(prefix)).values())


def _sink_lag(settings: Settings) -> int:
    prefix = settings.kafka.topic_prefix
    entities = (topics.EVENTS, topics.RECOMMENDATIONS, topics.CHURN_ALERTS)
    return sum(sum(group_lag(settings, f"{prefix}.sink", one.name(prefix)).values()) for one in entities)


def _runs(settings: Settings, version: str) -> bool:
    return any(version in label for label in metric(settings, "clickwake_model_info"))


def _train(console: Console, home: Path, *arguments: str) -> str:
    """Train in a process of its own, so that torch's memory goes with it; returns the model version."""
    result = _offline(console, home, "clickwake", "train", *arguments, "--json")
    return str(result["manifest"]["model_version"])


def _encoder(console: Console, home: Path) -> str:
    """Export the text encoder; returns its space."""
    return str(_offline(console, home, "training.text_encoder")["space"])


def _offline(console: Console, home: Path, module: str, *arguments: str) -> dict[str, Any]:
    log = home / "logs" / "train.log"
    with log.open("ab") as errors, console.status(f"{module} {' '.join(arguments)}"):
        done = subprocess.run([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, stderr=errors,
                              env={"CLICKWAKE_TRAINING__BUDGET_S": BUDGET_S, **os.environ, "CLICKWAKE_HOME": str(home)},
                              check=False)  # fmt: skip
    if done.returncode:
        raise DemoFailed(f"{module} {' '.join(arguments)} ended with code {done.returncode}; see {log}")
    result: dict[str, Any] = json.loads(done.stdout)
    console.print(f"  {json.dumps(result)[:400]}", style="dim", markup=False)
    return result


def _live(console: Console, settings: Settings, home: Path, world: World, live_from: datetime, target: KafkaTarget) -> str:
    """Stream the live days at an accelerated pace; retrain and release on the way. Returns the second model's version."""
    watch = Watch(settings)
    live_ms, total_ms = round(live_from.timestamp() * 1000), LIVE_DAYS * 86_400_000
    began = time.monotonic()
    sent, version = 0, ""
    retrained: list[str] = []
    retrain = threading.Thread(target=lambda: retrained.append(_train_quietly(home)), name="retrain")

    def pace(ts_ms: int) -> None:
        due = began + LIVE_SECONDS * (ts_ms - live_ms) / total_ms
        if ts_ms - live_ms > HOLD_AT * total_ms:
            if retrain.ident is None:
                retrain.start()
            retrain.join()  # the rest of the shoppers come once the retrained model is out
        while (wait := due - time.monotonic()) > 0:
            watch.poll()
            time.sleep(min(wait, 0.02))

    screen = Live(console=console, refresh_per_second=4) if console.is_terminal else nullcontext()
    with Feed(settings, TENANT) as feed, screen as view:
        shown = 0.0
        for event in world.live(live_from, None, feed, pace=pace):
            target.send(Record(key(TENANT, event.get("userId") or event["anonymousId"]), msgspec.json.encode(event)))
            sent += 1
            elapsed = time.monotonic() - began
            if elapsed > RETRAIN_AT * LIVE_SECONDS and retrain.ident is None:
                retrain.start()
            if elapsed - shown > 0.5:
                shown = elapsed
                watch.poll()
                if view is not None:
                    view.update(_screen(watch, sent, elapsed))
    retrain.join()
    version = retrained[0] if retrained else ""
    if not version:
        raise DemoFailed(f"the retrained model was not released; see {home / 'logs' / 'train.log'}")
    watch.poll()
    took = time.monotonic() - began
    console.print(f"  {sent:,} live events in {took:.0f} s, retrained model {version} released meanwhile")
    watch.close()
    return version


def _train_quietly(home: Path) -> str:
    return _train(Console(quiet=True), home, "--source", "clickhouse", "--release")


def _screen(watch: Watch, sent: int, elapsed: float) -> Panel:
    outcomes = metric(watch.settings, "clickwake_outcomes_total")
    encoded = sum(value for label, value in outcomes.items() if '"recommended"' in label)
    table = Table.grid(padding=(0, 3))
    table.add_row("events/s", f"{sent / max(elapsed, 1e-9):,.0f}", "lag", f"{watch.lag():,}")
    table.add_row("users re-embedded", f"{encoded:,.0f}", "recommendations", f"{watch.recommendations:,}")
    table.add_row("churn alerts", f"{watch.alerts:,}", "models seen", ", ".join(sorted(watch.versions)) or "–")
    lines: list[Any] = [table]
    if watch.latest and watch.latest.items:
        top = watch.latest.items[0]
        why = "; ".join(f"{reason.share:.0%} because of {reason.item_id}" for reason in top.reasons) or top.source
        lines.append(f"latest: {watch.latest.user_id} → {top.item_id} ({why})")
    return Panel(Group(*lines), title="live")


SQL = {
    "events": "SELECT count() FROM events FINAL",
    "recommendations": "SELECT uniqExact(recommendation_id) FROM recommendations",
    "churn_alerts": "SELECT uniqExact(alert_id) FROM churn_alerts",
    "dead_letters": "SELECT uniqExact(dead_letter_id) FROM dead_letters",
    "model_versions": "SELECT arraySort(groupUniqArray(model_version)) FROM recommendations",
}


def summarize(settings: Settings, world: World, as_of: datetime) -> dict[str, Any]:
    """Counts by SQL, and the outputs on the topics held against the planted truth."""
    house = settings.clickhouse
    client = clickhouse_connect.get_client(host=house.host, port=house.port, username=house.user, database=house.database,
                                           password=house.password.get_secret_value())  # fmt: skip
    summary: dict[str, Any] = {name: client.query(sql).result_rows[0][0] for name, sql in SQL.items()}
    prefix = settings.kafka.topic_prefix
    truth = world.truth()
    recommendations = _outputs(settings, topics.RECOMMENDATIONS.name(prefix), Recommendation)
    alerts = _outputs(settings, topics.CHURN_ALERTS.name(prefix), ChurnAlert)
    summary["taste_share"] = msgspec.to_builtins(truth.taste_share(recommendations))
    summary["alert_quality"] = msgspec.to_builtins(truth.alert_quality(alerts, as_of))
    return summary


def _outputs(settings: Settings, topic: str, kind: type[Any]) -> list[Any]:
    """All outputs on a topic, each id once."""
    servers = settings.kafka.bootstrap_servers
    consumer: Any = KafkaConsumer(bootstrap_servers=servers, group_id=None, enable_auto_commit=False)
    parts = [TopicPartition(topic, p) for p in range(settings.kafka.partitions)]
    consumer.assign(parts)
    consumer.seek_to_beginning(*parts)
    ends = consumer.end_offsets(parts)
    found: dict[str, Any] = {}
    while any(consumer.position(tp) < ends[tp] for tp in parts):
        for records in consumer.poll(timeout_ms=500, max_records=5_000).values():
            for record in records:
                value = msgspec.json.decode(record.value, type=kind)
                found.setdefault(value.recommendation_id if kind is Recommendation else value.alert_id, value)
    consumer.close()
    return list(found.values())


def _show(console: Console, summary: dict[str, Any]) -> None:
    table = Table(box=None, show_header=False)
    for name in (*SQL, "models", "seconds"):
        table.add_row(name, f"{summary[name]:,}" if isinstance(summary[name], int) else str(summary[name]))
    share, alerts = summary["taste_share"], summary["alert_quality"]
    table.add_row("in the true taste", f"{share['share']:.1%} {share['interval']}, random {share['random']:.1%}, "
                                       f"popularity {share['popularity']:.1%}")  # fmt: skip
    table.add_row("alerts", f"precision {alerts['precision']}, recall {alerts['recall']}")
    console.print(table)
