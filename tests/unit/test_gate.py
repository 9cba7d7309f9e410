"""A new model replaces the current one unless it is worse by more than chance and more than matters; the reason is kept."""

from __future__ import annotations

import itertools
import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from clickwake.cli import app
from schemas.release import Verdict
from stream.adapters.models import model_store
from stream.settings import Models, Settings, Training
from tests.support import bundles
from tests.support.bundles import Announced, Exported
from tests.support.fakes import DAY_MS, T0_MS, event
from tests.support.histories import drawn_texts, ring_walk
from training import commands, export, schedule, train
from training.evaluation.comparison import Comparison
from training.evaluation.metrics import Interval
from training.history import snapshot
from training.promotions import trials
from training.release import gate, verdicts, watch
from training.release import release as releases
from training.release.gate import Days, Values
from training.text import texts

RNG_SEED = 3


def planted(n: int, shift: float, noise: float, task: str = "") -> tuple[Values, Values]:
    """(candidate, current): values of n users, the candidate's higher by `shift` on average; other sub-tasks are equal."""
    rng = np.random.default_rng(RNG_SEED)
    drawn = rng.normal(size=n)
    old = 0.3 + 0.1 * rng.normal(size=n)
    new = old + shift + noise * (drawn - drawn.mean())
    same = {name: {"ndcg@10": old} for name in gate.SUB_TASKS}
    return same | {task: {"ndcg@10": new}}, same


@pytest.mark.parametrize(
    ("n", "shift", "noise", "released"),
    [
        (500, +0.010, 0.1, True),  # better
        (500, 0.0, 0.1, True),  # the same
        (5_000, -0.004, 0.05, True),  # a loss that is certain but small
        (10, -0.020, 0.2, True),  # a loss that may be chance
        (500, -0.020, 0.1, False),  # a loss that matters and is no accident
        (500, -0.150, 0.1, False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("task", ["", "new"])
def test_it_is_kept_back_only_for_a_loss_that_matters_and_is_no_accident(
    n: int, shift: float, noise: float, released: bool, task: str
) -> None:
    why = gate.worse(*planted(n, shift, noise, task))
    assert (why is None) is released
    if why is not None:
        assert gate.SUB_TASKS[task] in why and f"over {n} users" in why and "0.3" in why


def test_with_nobody_to_ask_newer_data_decide() -> None:
    nobody: Values = {task: {"ndcg@10": np.zeros(0)} for task in gate.SUB_TASKS}
    assert gate.worse(nobody, nobody) is None
    assert gate.differences(nobody, nobody) == {}


@pytest.mark.parametrize(("asked", "later"), [({"", "new"}, "i2"), ({""}, "i0"), (set(), "unheard of")])
def test_a_shop_in_which_nobody_is_asked_for_something_new_or_for_anything_is_judged(
    tmp_path: Path, exported: Exported, asked: set[str], later: str
) -> None:
    """Twenty users look at the same two items each day, and in the held-out days at one that they know, or nobody knew."""
    looks = [(user, day, item) for user in range(20) for day in range(6) for item in ("i0", "i1")]
    looks += [(user, 8, later) for user in range(20)] + [(20, 1, "i2")]
    history = snapshot.from_events([
        event(user=f"u{user}", ts_ms=T0_MS + day * DAY_MS + user, item=item, id=f"{user}-{day}-{item}")
        for user, day, item in looks
    ], bundles.ITEMS)  # fmt: skip
    known = drawn_texts(bundles.ITEMS, bundles.SPACE, bundles.TEXT_DIM)
    manifest = bundles.publish(str(tmp_path), exported)
    uri = model_store.bundle_uri(str(tmp_path), manifest.model_version)
    bundle = model_store.verify(uri, (Path(uri) / "manifest.json").read_bytes())
    found = gate.values(history, bundle, known, Days(T0_MS + 7 * DAY_MS, history.to_ms + 1, unseen=True))
    assert {task for task in gate.SUB_TASKS if len(found[task]["ndcg@10"])} == asked
    assert gate.worse(found, found) is None and set(gate.differences(found, found).values()) <= {Interval(0.0, 0.0, 0.0)}


def test_pairing_finds_what_unpaired_means_would_not() -> None:
    """Users differ by far more than the models do."""
    rng = np.random.default_rng(0)
    old = rng.uniform(0, 1, 300)
    worse = old - 0.02 + 0.01 * rng.normal(size=300)
    values = {"": {"ndcg@10": old}, "new": {"ndcg@10": np.zeros(0)}}
    assert "worse on all items" in (gate.worse(values | {"": {"ndcg@10": worse}}, values) or "")


def test_values_of_two_bundles_are_of_the_same_users(tmp_path: Path, exported: Exported) -> None:
    history = ring_walk(60)
    known = drawn_texts(history.items.values(), bundles.SPACE, bundles.TEXT_DIM)
    _, from_ms, end_ms = train.windows(history)
    asked = Days(from_ms, end_ms, unseen=True)
    found = []
    for seed in (0, 1):
        manifest = bundles.publish(str(tmp_path), exported, seed=seed)
        uri = model_store.bundle_uri(str(tmp_path), manifest.model_version)
        found.append(gate.values(history, model_store.verify(uri, (Path(uri) / "manifest.json").read_bytes()), known, asked))
    one, _ = found
    sizes = [{(task, name): len(each) for task, of in every.items() for name, each in of.items()} for every in found]
    assert sizes[0] == sizes[1]
    assert len(one[""]["ndcg@10"]) > 10
    assert set(gate.differences(one, one).values()) == {Interval(0.0, 0.0, 0.0)}


def test_the_days_begin_where_the_current_data_end_if_enough_users_came_back_since(exported: Exported) -> None:
    history = ring_walk(150)
    _, test_ms, end_ms = train.windows(history)
    drawn = export.draft(exported.model, "s", None, exported.files, (history.from_ms, test_ms - DAY_MS))
    assert gate.days(history, drawn) == Days(test_ms, end_ms, unseen=True)
    later = export.draft(exported.model, "s", None, exported.files, (history.from_ms, history.to_ms - 1))
    assert gate.days(history, later) == Days(test_ms, end_ms, unseen=False)


def verdict(version: str, **fields: Any) -> Verdict:
    given: dict[str, Any] = {"against": "v0", "released": False, "reason": "worse on all items"} | fields
    return Verdict(model_version=version, judged_at=datetime(2026, 1, 1, tzinfo=UTC), **given)


def test_the_reason_is_kept_beside_the_bundle_and_shown(
    tmp_path: Path, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = bundles.publish(str(tmp_path), exported)
    assert verdicts.read(str(tmp_path), manifest.model_version) is None
    verdicts.write(str(tmp_path), verdict(manifest.model_version))
    assert verdicts.kept(str(tmp_path), manifest.model_version) == "worse on all items"
    monkeypatch.setenv("CLICKWAKE_MODELS__REGISTRY", str(tmp_path))
    monkeypatch.setenv("CLICKWAKE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(releases, "current", lambda settings: None)
    said = json.loads(CliRunner().invoke(app, ["models", "--json"]).stdout)
    assert said["bundles"][0]["verdict"]["reason"] == "worse on all items"
    assert "is a candidate: worse on all items" in CliRunner().invoke(app, ["models"]).stdout.replace("\n", " ")


def line(registry: str, exported: Exported, length: int) -> list[str]:
    """Versions of bundles, each made from the one before it."""
    versions: list[str] = []
    for seed in range(length):
        parent = versions[-1] if versions else None
        versions.append(bundles.publish(registry, exported, seed=seed, parent=parent).model_version)
    return versions


def test_going_back_passes_over_what_was_never_released(
    tmp_path: Path, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(models=Models(registry=str(tmp_path)))
    topic, versions = Announced(monkeypatch, settings.registry), line(settings.registry, exported, 4)
    for one in (versions[0], versions[1], versions[3]):  # nobody judged the third: trained with --no-release, or cut short
        topic.release(settings, one)
    assert releases.before(settings, versions[3]) == versions[1]
    verdicts.write(settings.registry, verdict(versions[1]))
    assert releases.before(settings, versions[3]) == versions[0]
    with pytest.raises(releases.NothingReleased, match="no parent that was released"):
        releases.before(settings, versions[0])


def test_what_was_left_by_hand_is_not_gone_back_to(
    tmp_path: Path, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(models=Models(registry=str(tmp_path)))
    topic, versions = Announced(monkeypatch, settings.registry), line(settings.registry, exported, 4)
    for one in versions[:3]:
        topic.release(settings, one)
    back = releases.rollback(settings, "complaints")
    assert (back.model_version, back.reason) == (versions[1], "complaints")
    assert verdicts.kept(settings.registry, versions[2]) == "rolled back: complaints"
    topic.release(settings, versions[3])  # its training had begun before
    assert releases.rollback(settings).model_version == versions[1]
    assert verdicts.kept(settings.registry, versions[3]) == "rolled back: by hand"


def test_who_may_only_read_the_registry_can_go_back(
    tmp_path: Path, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(models=Models(registry=str(tmp_path)))
    topic, versions = Announced(monkeypatch, settings.registry), line(settings.registry, exported, 2)
    for one in versions:
        topic.release(settings, one)

    def refused(registry: str, verdict: Verdict) -> None:
        raise PermissionError(registry)

    monkeypatch.setattr(verdicts, "write", refused)
    assert releases.rollback(settings).model_version == versions[0] == topic.current.model_version


def test_a_round_releases_what_is_not_worse_and_keeps_what_is(
    tmp_path: Path, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(models=Models(registry=str(tmp_path)), training=Training(budget_s=4.0))
    history = ring_walk(60)
    known = drawn_texts(history.items.values(), bundles.SPACE, bundles.TEXT_DIM)
    topic = Announced(monkeypatch, str(tmp_path))
    monkeypatch.setattr(snapshot, "from_clickhouse", lambda settings, tenant: history)
    monkeypatch.setattr(texts, "encode", lambda settings, items, say, *, running: known)
    monkeypatch.setattr(trials, "read", lambda settings, tenant: {})
    monkeypatch.setattr(train, "train", _published(str(tmp_path), exported))
    first, announced = schedule.run_once(settings, "t")
    assert announced is not None and first.reason == "the first release"
    bundles.publish(str(tmp_path), exported, seed=100)  # newer than what runs, and released by nobody
    monkeypatch.setattr(gate, "values", _drawn(first.model_version, others=0.5))
    second, announced = schedule.run_once(settings, "t")
    assert announced is not None and second.against == first.model_version and second.users == 80, second
    assert topic.current == announced and announced.reason.startswith("scheduled: not worse than")
    monkeypatch.setattr(gate, "values", _drawn(second.model_version, others=0.1))
    third, announced = schedule.run_once(settings, "t")
    assert announced is None and not third.released and "worse on all items" in third.reason
    assert topic.current.model_version == second.model_version
    assert verdicts.read(str(tmp_path), third.model_version) == third
    made = [releases.manifest_of(str(tmp_path), one.model_version).parent for one in (first, second, third)]
    assert made == [None, first.model_version, second.model_version], "each comes after the one that runs"


def _published(registry: str, exported: Exported) -> Any:
    """Training that publishes another tiny bundle each time; siblings are learned for real."""
    seeds = itertools.count()

    def run(settings: Settings, history: Any, texts: Any, parent: Any, trials: Any, say: Any) -> train.Trained:
        manifest = bundles.publish(registry, exported, seed=next(seeds), parent=parent)
        digest = bundles.announcement(registry, manifest).manifest_sha256
        nothing = Comparison(task="recommend", dataset="d", split="s", n=0, models={}, served="clickwake")
        return train.Trained(manifest, digest, nothing)

    return run


def _drawn(current: str, others: float) -> Any:
    """The current bundle is worth 0.5 to each user, any other `others`."""

    def values(history: Any, bundle: Any, known: Any, held_out: Any) -> Values:
        value = 0.5 if bundle.manifest.model_version == current else others
        return {task: {"ndcg@10": np.full(80, value)} for task in gate.SUB_TASKS}

    return values


def test_between_two_trainings_the_release_is_watched_until_asked_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, looked = threading.Event(), list[str]()

    def look(settings: Settings, tenant: str, horizon: str) -> None:
        looked.append(tenant)
        if len(looked) == 3:
            stop.set()
        raise ConnectionError("ClickHouse is away")  # is said, and tried again

    monkeypatch.setattr(watch, "watch", look)
    monkeypatch.setattr(schedule, "WATCH_S", 0.001)
    schedule.Watching(Settings(), "t", 3_600.0).until(60.0, stop)
    assert looked == ["t"] * 3


@pytest.mark.parametrize(("every", "horizon"), [("6h", "1h"), ("47h", "1h"), ("2d", "1d"), ("7d", "1d")])
def test_a_release_is_judged_while_it_runs_and_what_cannot_be_is_said_once(
    every: str, horizon: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, moved = "hit rate: fewer than 200 recommendations of {}", "inputs: others than it learned from (PSI event 0.3{})"
    looks = [("v1", [few.format("v1"), moved.format(0)]), ("v1", [few.format("v0, v1"), moved.format(1)]), ("v1", []),
             ("v2", [few.format("v2")]), ("v2", [few.format("v2"), moved.format(2)])]  # fmt: skip
    stop, coming, asked = threading.Event(), iter(looks), set[str]()

    def look(settings: Settings, tenant: str, horizon: Any) -> watch.Watched:
        asked.add(horizon)
        version, lines = next(coming)
        if lines == looks[-1][1]:
            stop.set()
        return watch.Watched(current=version, horizon=horizon, not_judged=lines)

    monkeypatch.setattr(watch, "watch", look)
    monkeypatch.setattr(schedule, "WATCH_S", 0.001)
    with capture_logs() as said:
        schedule.Watching(Settings(), "t", schedule.seconds(every)).until(60.0, stop)
    assert asked == {horizon}
    assert [(one["model_version"], one["why"]) for one in said] == [
        ("v1", few.format("v1")), ("v1", moved.format(0)), ("v2", few.format("v2")), ("v2", moved.format(2))]


def test_where_nobody_can_say_what_runs_only_what_is_not_announced_is_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(settings: Settings) -> None:
        raise ConnectionError("Kafka is away")

    monkeypatch.setattr(releases, "current", away)
    assert commands.running_now(Settings(), announce=False) is None
    assert "the new bundle gets no parent: Kafka is away" in capsys.readouterr().err
    with pytest.raises(ConnectionError, match="Kafka is away"):
        commands.running_now(Settings(), announce=True)
