"""`python -m training.schedule --every 6h`: train from ClickHouse, release what is not worse, say why otherwise.

A candidate that is worse than the current bundle on the newest held-out days, see `gate`, stays in the registry with the
reason beside it. SIGTERM and Ctrl-C end it between two steps of training at the latest: nothing is announced by half.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
import time
from types import FrameType

import structlog

from producers.datasets.table import DatasetError
from producers.kafka import KafkaUnavailable, NotAcknowledged
from schemas.release import Manifest, ModelRelease, Verdict
from stream import settings as settings_module
from stream.adapters.models import model_store, signing
from stream.settings import Settings
from training import train
from training.history import snapshot
from training.history.live import Horizon
from training.opinions import satisfaction_renewal
from training.parity import ParityFailed
from training.promotions import trials
from training.release import gate, release, verdicts, watch
from training.text import text_encoder, texts
from training.text.texts import Texts

log = structlog.get_logger()

NICENESS = 10  # training takes what processor time is left: customers wait for the workers, nobody for a model
RETRY_S = 300.0  # after a round that could not be done
WATCH_S = 600.0  # hit rates change slowly; the queries take a second
SHORT_S = 2 * 86_400.0  # of a release that lives for less, hits within a day would hardly be counted before it is replaced
NOT_NOW = (snapshot.EmptyHistory, ConnectionError, release.NothingReleased, KafkaUnavailable, NotAcknowledged,
           model_store.BundleRefused, ParityFailed, text_encoder.TextModelRefused)  # fmt: skip
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


class Stopped(Exception):
    """Somebody asked the process to end."""


def seconds(text: str) -> float:
    """
    >>> seconds("6h"), seconds("90s")
    (21600.0, 90.0)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if found is None or float(found[1]) <= 0:
        raise ValueError(f"{text!r} is no interval: a number and s, m, h or d, for example 6h")
    return float(found[1]) * _UNITS_S[found[2]]


def run_once(settings: Settings, tenant: str) -> tuple[Verdict, ModelRelease | None]:
    """Train, judge, release or keep. Returns the verdict, which is kept beside the bundle, and the announcement if any."""
    now = release.current(settings)  # who cannot say what runs now cannot say so after a training
    history = snapshot.from_clickhouse(settings, tenant)
    known = texts.encode(settings, history.items, log.info, running=True)
    trained = train.train(settings, history, known, parent=None if now is None else now.model_version,
                          trials=trials.read(settings, tenant), say=log.info)  # fmt: skip
    version = trained.manifest.model_version
    release.sign_new(settings, version, trained.manifest_sha256)
    verdict = _judged(settings, history, known, trained.manifest)
    verdicts.write(settings.registry, verdict)
    return verdict, release.release(settings, version, f"scheduled: {verdict.reason}") if verdict.released else None


def _judged(settings: Settings, history: snapshot.History, known: Texts, candidate: Manifest) -> Verdict:
    now = release.current(settings)
    if now is None:
        return gate.unjudged(candidate, "the first release")
    try:
        current = model_store.load(settings.registry, now, settings.training.threads, signing.trusted(settings.models))
    except model_store.RegistryAway:
        raise
    except model_store.BundleRefused as error:
        why = f"the current bundle {now.model_version} cannot be loaded: {error}"
        return gate.unjudged(candidate, why, now.model_version)
    if current.manifest.text_space != candidate.text_space:
        why = f"another text encoder than {now.model_version} has: their vectors cannot be compared on one catalog"
        return gate.unjudged(candidate, why, now.model_version)
    return gate.judge(settings, history, known, candidate, current, log.info)


def renew_satisfaction(renewal: satisfaction_renewal.Schedule) -> None:
    """The satisfaction model, when it is due; what stands in the way is said, and it is due again after its own interval."""
    try:
        renewed = renewal.when_due(log.info)
    except (DatasetError, *NOT_NOW) as error:
        log.warning("satisfaction model not renewed", why=str(error))
        return
    if renewed is not None:
        log.info("satisfaction model published" if renewed.published else "satisfaction model kept",
                 model=renewed.published, why=renewed.reason)  # fmt: skip


def run(settings: Settings, every_s: float, tenant: str, stop: threading.Event) -> None:
    """Train whenever the current release is `every_s` old, until `stop`. A round that cannot be done says why and is tried
    again soon: a new shop has no history yet. The text encoder is exported first: the catalog waits for it."""
    try:
        text_encoder.export(settings)
    except NOT_NOW as error:
        log.warning("text encoder not exported", why=str(error))
    renewal = None
    if settings.training.satisfaction_every is not None:
        renewal = satisfaction_renewal.Schedule(settings, tenant, seconds(settings.training.satisfaction_every))
    watching = Watching(settings, tenant, every_s)
    watching.until(_due_in_s(settings, every_s), stop)
    while not stop.is_set():
        started = time.monotonic()
        pause_s = every_s
        try:
            verdict, announced = run_once(settings, tenant)
            log.info("released" if announced else "kept as a candidate", model_version=verdict.model_version,
                     why=verdict.reason)  # fmt: skip
        except NOT_NOW as error:
            pause_s = min(every_s, RETRY_S)
            log.warning("no training this time", why=str(error), again_in_s=round(pause_s))
        if renewal is not None:
            renew_satisfaction(renewal)
        watching.until(max(1.0, pause_s - (time.monotonic() - started)), stop)


class Watching:
    """Looks between two trainings at how the released bundle does: at hits within an hour where there is a new one every few
    hours, else within a day."""

    def __init__(self, settings: Settings, tenant: str, every_s: float) -> None:
        self._settings, self._tenant = settings, tenant
        self._horizon: Horizon = "1h" if every_s < SHORT_S else "1d"
        self._said: set[tuple[str, str]] = set()  # (bundle, what of it could not be judged)

    def until(self, wait_s: float, stop: threading.Event) -> None:
        """Let time pass until the next training, looking now and then."""
        end = time.monotonic() + wait_s
        while (left_s := end - time.monotonic()) > 0 and not stop.wait(min(WATCH_S, left_s)):
            if left_s <= WATCH_S:
                return
            try:
                found = watch.watch(self._settings, self._tenant, self._horizon)
            except NOT_NOW as error:
                log.warning("not watched this time", why=str(error), again_in_s=round(WATCH_S))
            else:
                self._say_once(found)

    def _say_once(self, found: watch.Watched) -> None:
        """What cannot be judged yet, of each release once."""
        now = {(found.current, line.partition(":")[0]): line for line in found.not_judged}
        self._said = {one for one in self._said if one[0] == found.current}
        for about, line in now.items():
            if about not in self._said:
                log.info("not judged", model_version=found.current, why=line)
        self._said |= now.keys()


def _due_in_s(settings: Settings, every_s: float) -> float:
    """Time until the current release is due for renewal; 0 when there is none, or nobody to ask."""
    try:
        now = release.current(settings)
    except (ConnectionError, release.NothingReleased) as error:
        log.warning("the current release is not known", why=str(error))
        return 0.0
    return 0.0 if now is None else max(0.0, now.released_at.timestamp() + every_s - time.time())


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    settings = settings_module.load()
    parser = argparse.ArgumentParser(prog="python -m training.schedule", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--every", default=settings.training.every or "6h", help="pause between two starts, e.g. 6h or 30m")
    parser.add_argument("--tenant", default=settings.training.tenant, help="whose events to learn from")
    chosen = parser.parse_args(arguments)
    try:
        every_s = seconds(chosen.every)
        if settings.training.satisfaction_every is not None:
            seconds(settings.training.satisfaction_every)
    except ValueError as error:
        parser.error(str(error))
    os.nice(NICENESS)
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()
        raise Stopped(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    try:
        run(settings, every_s, chosen.tenant, stop)
    except Stopped as stopped:
        log.info("stopped", signal=str(stopped))
    return 0


if __name__ == "__main__":
    sys.exit(main())
