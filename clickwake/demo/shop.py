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
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from kafka import KafkaConsumer, TopicPartition
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import Progress
from rich.table import Table

from clickwake.demo.stage import DemoFailed, Stage, begin_afresh, example_rules, tells_nobody
from clickwake.local.observe import metric
from clickwake.local.up import Local
from producers.kafka import client_options
from producers.simulate.feed import Feed
from producers.simulate.mess import Record
from producers.simulate.targets import KafkaTarget
from producers.simulate.world import World
from schemas import topics
from schemas.outputs import ChurnAlert, Recommendation, RecommendedItem
from stream.settings import Settings
from stream.urls import without_userinfo

SHOPPERS, HISTORY_DAYS, LIVE_DAYS, SEED = 400, 90, 30, 7
LIVE_SECONDS = 75.0  # 30 days of shopping in this time
RETRAIN_AT = 0.1  # share of the live part after which a model is retrained
HOLD_AT = 0.7  # share after which shoppers wait for it, so that it serves the rest on a slow machine too
TENANT = "demo"
BUDGET_S = "40"  # of the user encoder, each time: enough to beat popularity clearly, short enough to watch
REFRESH_S = 0.5  # of the live view


class Watch:
    """Follows the outputs for the live view."""

    def __init__(self, settings: Settings) -> None:
        self.recommendations = self.alerts = 0
        self.latest: Recommendation | None = None
        self.versions: dict[str, int] = {}
        self._consumer: Any = KafkaConsumer(**client_options(settings.kafka), group_id=None, auto_offset_reset="earliest",
                                            enable_auto_commit=False)  # fmt: skip
        prefix = settings.kafka.topic_prefix
        self._alerts_topic = topics.CHURN_ALERTS.name(prefix)
        names = (topics.RECOMMENDATIONS.name(prefix), self._alerts_topic)
        self._consumer.assign([TopicPartition(name, p) for name in names for p in range(settings.kafka.partitions)])

    def poll(self) -> None:
        """Take what is new."""
        for tp, records in self._consumer.poll(timeout_ms=20, max_records=5_000).items():
            if tp.topic == self._alerts_topic:
                self.alerts += len(records)
                continue
            for record in records:
                self.latest = msgspec.json.decode(record.value, type=Recommendation)
                self.versions[self.latest.model_version] = self.versions.get(self.latest.model_version, 0) + 1
            self.recommendations += len(records)

    def close(self) -> None:
        self._consumer.close()


def run(home: Path, *, keep: bool = False, console: Console | None = None) -> dict[str, Any]:
    """The demo; returns the summary it printed. Raises `DemoFailed`, `StartError`."""
    console = console or Console()
    started = time.monotonic()
    end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    days, live_from = HISTORY_DAYS + LIVE_DAYS, end - timedelta(days=LIVE_DAYS)
    tells_nobody(Settings(home=home))
    console.rule("1 · broker, ClickHouse, workers")
    begin_afresh(home, console)
    example_rules(home)
    with Local(home, say=lambda text: console.print(f"  {text}", style="dim", highlight=False)) as local:
        stage = Stage(local, console)
        console.rule("2 · history: one shop, its catalog, its shoppers")
        world = World(SEED, SHOPPERS, days, end - timedelta(days=days), tenant=TENANT)
        imported = _import(stage, world, live_from)
        console.rule("3 · a first model")
        first = _train(stage)
        stage.until_zero("taking the release", lambda: 0 if first in _models(local.settings) else 1, "personalize")
        console.rule("4 · live shoppers, and 5 · a retrained model while they shop")
        with KafkaTarget(local.settings, lambda text: None) as target:
            second, live = _live(stage, world, live_from, target)
        stage.settle()
        console.rule("6 · what happened, by SQL, against the truth")
        summary = stage.query(lambda client: summarize(client, world, live_from, end))
        summary |= {"sent": imported + live, "models": [first, second], "seconds": round(time.monotonic() - started)}
        _show(console, summary)
        if summary["events"] != summary["sent"]:
            raise DemoFailed(f"{summary['sent']} events were sent, ClickHouse has {summary['events']}; "
                             f"see {stage.log('sink')}")
        (home / "demo.json").write_text(json.dumps(summary, indent=2, default=str))
        stage.stay(keep)
    return dict(summary)


def _import(stage: Stage, world: World, until: datetime) -> int:
    """Send catalog and history, wait until all of it is folded, stored and encoded; returns the number of events."""
    space = str(_offline(stage, "training.text.text_encoder")["space"])
    with KafkaTarget(stage.settings, lambda text: None) as target, Progress(console=stage.console, transient=True) as shown:
        target.catalog(world.items())
        task = shown.add_task("history", total=(until - world.start).total_seconds())
        sent = 0
        for event in world.history(until):
            target.send(Record.of(event))
            sent += 1
            if sent % 1_000 == 0:
                at = datetime.fromisoformat(event["timestamp"])
                shown.update(task, completed=(at - world.start).total_seconds(), description=f"history: {sent:,} events")
    stage.settle()
    stage.until_zero("encoding items", lambda: stage.lag.encoding(space), "catalog")
    stage.console.print(f"  {sent:,} events of {SHOPPERS} shoppers in {HISTORY_DAYS} days, {len(world.items()):,} products")
    return sent


def _models(settings: Settings) -> str:
    """The models the personalize processes rank with, as the metric's labels."""
    return " ".join(metric(settings, "clickwake_model_info"))


def _train(stage: Stage) -> str:
    """Train in a process of its own, so that torch's memory goes with it; returns the model version."""
    manifest = _offline(stage, "clickwake", "train", "--source", "clickhouse", "--release", "--json")["manifest"]
    metrics = manifest["metrics"]

    def ndcg(method: str) -> str:
        return f"{metrics[f'{method}_all_ndcg_at_10']:.3f}"

    stage.console.print(
        f"  {manifest['model_version']} released: NDCG@10 of the next basket {ndcg('clickwake')}, personal frequency "
        f"{ndcg('personal_frequency')}, EASE {ndcg('ease')}, popularity {ndcg('popularity_30_days')}; the report is "
        f"{without_userinfo(stage.settings.registry)}/bundles/{manifest['model_version']}/report/index.html",
        highlight=False)  # fmt: skip
    return str(manifest["model_version"])


def _offline(stage: Stage, module: str, *arguments: str) -> dict[str, Any]:
    log = stage.log("train")
    with log.open("ab") as errors, stage.console.status(f"{module} {' '.join(arguments)}"):
        done = subprocess.run([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, stderr=errors,
                              env={"CLICKWAKE_TRAINING__BUDGET_S": BUDGET_S, **os.environ,
                                   "CLICKWAKE_HOME": str(stage.settings.home)}, check=False)  # fmt: skip
    if done.returncode:
        raise DemoFailed(f"{module} {' '.join(arguments)} ended with code {done.returncode}; see {log}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


class Retraining(threading.Thread):
    """A second model, trained and released while shoppers shop. `version` is empty when that failed."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(name="retraining")
        self.stage = stage
        self.version = ""
        self.failure: DemoFailed | None = None

    def run(self) -> None:
        quiet = Stage(self.stage.local, Console(quiet=True))
        try:
            self.version = _train(quiet)
        except DemoFailed as error:
            self.failure = error

    def begun(self) -> bool:
        return self.ident is not None

    def finish(self) -> str:
        """Wait for it; returns the version. Raises what it failed with."""
        self.join()
        if self.failure is not None:
            raise self.failure
        return self.version


def _live(stage: Stage, world: World, live_from: datetime, target: KafkaTarget) -> tuple[str, int]:
    """Stream the live days at an accelerated pace; retrain and release on the way. Returns the second model's version and
    the number of events."""
    watch, retraining = Watch(stage.settings), Retraining(stage)
    live_ms, total_ms = round(live_from.timestamp() * 1000), LIVE_DAYS * 86_400_000
    began = time.monotonic()
    held_s = 0.0

    def pace(ts_ms: int) -> None:
        nonlocal held_s
        share = (ts_ms - live_ms) / total_ms
        if share > RETRAIN_AT and not retraining.begun():
            retraining.start()
        if share > HOLD_AT and retraining.is_alive():
            waiting = time.monotonic()
            retraining.join()  # the rest of the shoppers come once the retrained model is out
            held_s += time.monotonic() - waiting
        due = began + held_s + LIVE_SECONDS * share
        while (wait := due - time.monotonic()) > 0:
            watch.poll()
            time.sleep(min(wait, 0.02))

    console = stage.console
    screen = Live(console=console, refresh_per_second=4) if console.is_terminal else nullcontext()
    with Feed(stage.settings, TENANT) as feed, screen as view:
        sent, shown = 0, 0.0
        for event in world.live(live_from, None, feed, pace=pace):
            target.send(Record.of(event))
            sent += 1
            elapsed = time.monotonic() - began
            if view is not None and elapsed - shown > REFRESH_S:
                shown = elapsed
                view.update(_screen(stage, watch, sent, elapsed))
    version = retraining.finish()
    watch.close()
    seconds = time.monotonic() - began
    console.print(f"  {sent:,} live events in {seconds:.0f} s; {version} was trained and released meanwhile",
                  highlight=False)
    return version, sent


def _screen(stage: Stage, watch: Watch, sent: int, elapsed: float) -> Panel:
    outcomes = metric(stage.settings, "clickwake_outcomes_total")
    encoded = sum(value for label, value in outcomes.items() if '"recommended"' in label)
    table = Table.grid(padding=(0, 3))
    table.add_row("events/s", f"{sent / max(elapsed, 1e-9):,.0f}", "lag", f"{stage.lag.folding():,}")
    table.add_row("users re-embedded", f"{encoded:,.0f}", "recommendations", f"{watch.recommendations:,}")
    table.add_row("churn alerts", f"{watch.alerts:,}", "models seen", ", ".join(sorted(watch.versions)) or "–")
    lines: list[Any] = [table]
    if watch.latest and watch.latest.items:
        top = watch.latest.items[0]
        why = "; ".join(f"{reason.share:.0%} because of {reason.item_id}" for reason in top.reasons) or top.source
        lines.append(f"latest: {watch.latest.user_id} → {top.item_id} ({why})")
    return Panel(Group(*lines), title="live")


COUNTS = {
    "events": "SELECT count() FROM events FINAL",
    "recommendations": "SELECT count() FROM recommendations_served",
    "churn_alerts": "SELECT countIf(state = 'raised') FROM churn_alerts_served",
    "segment_changes": "SELECT count() FROM segment_changes_served",
    "segments": "SELECT countIf(members > 0) FROM segment_sizes",
    "dead_letters": "SELECT count() FROM dead_letters FINAL",
    "model_versions": "SELECT arraySort(groupUniqArray(model_version)) FROM recommendations_served",
}
SERVED = "SELECT recommendation_id, user_id, item_ids, as_of_event_id, as_of_ts, model_version FROM recommendations_served"
ALERTS = ("SELECT alert_id, user_id, state, probability, horizon_days, probability_low, probability_high, reasons, "
          "last_event_ts, as_of_ts, model_version FROM churn_alerts_served")


def summarize(client: Any, world: World, live_from: datetime, as_of: datetime) -> dict[str, Any]:
    """What ClickHouse says was served, held against the planted truth."""
    summary: dict[str, Any] = {name: client.query(sql).result_rows[0][0] for name, sql in COUNTS.items()}
    recommendations = [
        Recommendation(recommendation_id=ident, tenant=TENANT, user_id=user, as_of_event_id=event, as_of_ts=at,
                       items=tuple(RecommendedItem(item_id=item, score=0.0, source="") for item in items),
                       model_version=version)
        for ident, user, items, event, at, version in client.query(SERVED).result_rows
    ]
    alerts = [
        ChurnAlert(alert_id=ident, tenant=TENANT, user_id=user, state=state, probability=p, horizon_days=days,
                   interval=(low, high), reasons=tuple(reasons), last_event_ts=last, as_of_ts=at, model_version=version)
        for ident, user, state, p, days, low, high, reasons, last, at, version in client.query(ALERTS).result_rows
    ]
    truth = world.truth()
    summary["taste_share"] = msgspec.to_builtins(truth.taste_share(recommendations))
    summary["alert_quality"] = msgspec.to_builtins(truth.alert_quality(alerts, as_of, since=live_from))
    return summary


def _show(console: Console, summary: dict[str, Any]) -> None:
    share, alerts = summary["taste_share"], summary["alert_quality"]
    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_row("events", f"{summary['events']:,}", f"all {summary['sent']:,} that were sent, each once")
    table.add_row("recommendations", f"{summary['recommendations']:,}", f"to {share['shoppers']} shoppers")
    table.add_row("in the true taste", _percent(share["share"], share["interval"]),
                  f"random items {share['random']:.1%}, popular ones {share['popularity']:.1%}")
    table.add_row("churn alerts", f"{alerts['raised']}", f"raised while live, {LIVE_DAYS} days of event time")
    table.add_row("  precision", _percent(alerts["precision"], alerts["precision_interval"]),
                  f"{alerts['right']} of {alerts['raised']} had left for good, or did so within the horizon")
    table.add_row("  recall", _percent(alerts["recall"], alerts["recall_interval"]),
                  f"{alerts['caught']} of {alerts['left']} who left while live")
    table.add_row("  recall, settled", _percent(alerts["recall_settled"], None),
                  f"{alerts['caught_settled']} of {alerts['left_settled']} who had left for two weeks")
    table.add_row("segments", str(summary["segments"]), f"{summary['segment_changes']:,} changes; "
                  "`clickwake segments list` shows them")  # fmt: skip
    table.add_row("models", str(len(summary["models"])), " → ".join(summary["models"]))
    table.add_row("took", f"{summary['seconds']} s", "")
    console.print(table)


def _percent(value: float | None, interval: tuple[float, float] | None) -> str:
    """
    >>> _percent(0.5, (0.25, 0.75)), _percent(None, None)
    ('50.0% (25.0% to 75.0%)', '–')
    """
    if value is None:
        return "–"
    return f"{value:.1%}" + (f" ({interval[0]:.1%} to {interval[1]:.1%})" if interval else "")
