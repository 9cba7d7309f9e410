"""What the commands train, evaluate, release and rollback do and print."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from stream import settings as settings_module
from stream.adapters.models import model_store
from stream.settings import Settings
from stream.urls import without_userinfo
from training.history.snapshot import History
from training.printing import EXPECTED, console, fail, print_json
from training.release.release import NothingReleased


def history_of(settings: Settings, source: str, dataset: tuple[str, Path] | None, events: Path | None, items: Path | None,
               tenant: str) -> History:
    """The history that was named on the command line. Raises ValueError when none or two were."""
    from training.history import snapshot

    if dataset is not None and events is not None:
        raise ValueError("name either --dataset or --events, not both")
    if dataset is not None:
        return snapshot.from_dataset(*dataset)
    if events is not None:
        return snapshot.from_file(events, items)
    if source != "clickhouse":
        raise ValueError(f"--source {source!r} is not known; it is clickhouse, or use --dataset or --events")
    return snapshot.from_clickhouse(settings, tenant)


def train(source: str, dataset: tuple[str, Path] | None, events: Path | None, items: Path | None, tenant: str,
          announce: bool, as_json: bool) -> None:
    """Train once; release unless told not to."""
    from training import train as training
    from training.evaluation import comparison
    from training.promotions import trials
    from training.release import release
    from training.text import texts

    settings = settings_module.load()
    try:
        history = history_of(settings, source, dataset, events, items, tenant)
        running = dataset is None and events is None  # else of another shop
        known = texts.encode(settings, history.items, console.print, running=running)
        told = trials.read(settings, tenant) if running else {}
        parent = running_now(settings, announce) if running or announce else None
        trained = training.train(settings, history, known, parent=parent, trials=told, say=console.print)
        release.sign_new(settings, trained.manifest.model_version, trained.manifest_sha256)
        announced = release.release(settings, trained.manifest.model_version, "clickwake train") if announce else None
    except EXPECTED as error:
        fail(error)
    if as_json:
        print_json({"manifest": trained.manifest, "manifest_sha256": trained.manifest_sha256, "released": announced})
        return
    for table in comparison.tables(trained.comparison):
        Console().print(table)
    where = model_store.bundle_uri(settings.registry, trained.manifest.model_version)
    Console().print(f"{where}\n{'released' if announced else 'not released; see clickwake release'}")


def running_now(settings: Settings, announce: bool) -> str | None:
    """The released bundle, which a new one has as its parent; None where nothing is, or, which is said, where nobody can say
    so. Raises ConnectionError for a new one that is to be announced."""
    from training.release import release

    try:
        now = release.current(settings)
    except (ConnectionError, NothingReleased) as error:
        if announce and isinstance(error, ConnectionError):
            raise
        console.print(f"the new bundle gets no parent: {error}", highlight=False)
        return None
    return None if now is None else now.model_version


def release(version: str, reason: str, as_json: bool) -> None:
    """Announce a bundle; `newest` names the newest in the registry."""
    from training.release import release as releasing

    settings = settings_module.load()
    try:
        if version == "newest":
            known = model_store.versions(settings.registry)
            if not known:
                where = without_userinfo(settings.registry)
                raise NothingReleased(f"{where} holds no bundle; train one with clickwake train")
            version = known[0].model_version
        announced = releasing.release(settings, version, reason)
    except EXPECTED as error:
        fail(error)
    print_json(announced) if as_json else Console().print(f"released {announced.model_version}")


def rollback(reason: str, as_json: bool) -> None:
    """Announce the parent of the current bundle."""
    from training.release import release as releasing

    try:
        announced = releasing.rollback(settings_module.load(), reason)
    except EXPECTED as error:
        fail(error)
    print_json(announced) if as_json else Console().print(f"released {announced.model_version}: {announced.reason}")


def _ms(at: datetime | None) -> int | None:
    return None if at is None else int(at.replace(tzinfo=UTC).timestamp() * 1000)
