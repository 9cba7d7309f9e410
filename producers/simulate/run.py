"""One run of the simulator: world → mess → target, with the truth written beside it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import msgspec

from producers.replay import Pace, parse_speed
from producers.simulate.feed import Feed
from producers.simulate.mess import Mess
from producers.simulate.stage import Recommendations
from producers.simulate.strategies import decision
from producers.simulate.targets import Target, open_target
from producers.simulate.world import ITEMS, SEED, TENANT, World
from stream.settings import Settings

PROGRESS_EVENTS = 2_000  # events between two updates of a fast run's progress; a paced run tells of every event


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`begin` and `until` cut a window out of the world; default: all of it. `start` None: see `default_start`.

    `recommendations`: shoppers look at what is on the recommendations topic (live lane only). `strategies`: orders are made
    under offers, whose decisions are sent too.
    """

    shoppers: int
    days: int
    seed: int = SEED
    to: str = "kafka"
    speed: str = "max"
    lane: Literal["import", "live"] = "import"
    truth: Path | None = None
    mess: float = 0.0
    items: int = ITEMS
    tenant: str = TENANT
    start: datetime | None = None
    begin: datetime | None = None
    until: datetime | None = None
    catalog: bool = True
    recommendations: bool = False
    strategies: bool = False


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was sent. `records` = events + duplicates and damaged copies among the mess."""

    seed: int
    start: datetime
    end: datetime
    shoppers: int
    items: int
    events: int
    records: int
    by_name: dict[str, int]
    mess: dict[str, int]
    to: str
    truth: str
    seconds: float
    events_per_s: float
    stopped: bool


def default_start(options: Options, now: datetime) -> datetime:
    """At real time (1x) the world begins now; otherwise it ends with the last midnight, UTC: nothing is in the future."""
    if parse_speed(options.speed) == 1.0:
        return now.replace(microsecond=0)
    return now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=options.days)


def parse_time(text: str, option: str) -> datetime:
    """`now`, or an ISO date or time; without a zone it is UTC.

    >>> parse_time("2026-01-01", "--start").isoformat()
    '2026-01-01T00:00:00+00:00'
    """
    if text == "now":
        return datetime.now(UTC)
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{option} {text!r} is neither `now` nor an ISO time such as 2026-01-01T00:00:00Z") from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


class Simulation:
    """One run. `stop` may be set from a signal handler: the run ends with everything sent so far acknowledged."""

    def __init__(self, settings: Settings, options: Options, *,
                 on_wait: Callable[[str], None] = lambda message: None) -> None:
        if options.recommendations and options.lane != "live":
            raise ValueError("shoppers can follow recommendations in the live lane only: add --lane live")
        self.settings, self.options, self.on_wait = settings, options, on_wait
        start = options.start or default_start(options, datetime.now(UTC))
        self.world = World(options.seed, options.shoppers, options.days, start, items=options.items, tenant=options.tenant,
                           strategies=options.strategies)
        for name, at in (("--from", options.begin), ("--until", options.until)):
            if at is not None and not self.world.start <= at <= self.world.end:
                raise ValueError(f"{name} {at.isoformat()} is outside the world, which lasts from "
                                 f"{self.world.start.isoformat()} to {self.world.end.isoformat()}")
        self.begin, self.until = options.begin or self.world.start, options.until or self.world.end
        self.stop = threading.Event()
        self.events, self.now_ms = 0, round(self.begin.timestamp() * 1000)
        self._pace = Pace(parse_speed(options.speed), self.stop)
        self._names: Counter[str] = Counter()

    @property
    def truth_folder(self) -> Path:
        """`--truth`, else beside the events' file, else `<home>/simulate`."""
        if self.options.truth is not None:
            return self.options.truth
        return self.settings.home / "simulate" if self.options.to == "kafka" else Path(self.options.to).parent

    def run(self, on_progress: Callable[[Simulation], None] = lambda simulation: None) -> Report:
        """Raises KafkaUnavailable, NotAcknowledged, or OSError for a file that cannot be written."""
        options, started, records = self.options, time.monotonic(), 0
        every = PROGRESS_EVENTS if parse_speed(options.speed) is None else 1
        mess = Mess(options.mess, options.seed)
        truth = self.world.truth()
        truth.save(self.truth_folder)  # before the first event: a run that is cut off has its truth all the same
        with contextlib.ExitStack() as stack:
            feed = stack.enter_context(Feed(self.settings, options.tenant)) if options.recommendations else None
            target = stack.enter_context(open_target(options.to, self.settings, self.on_wait))
            if options.catalog:
                target.catalog(self.world.items())
            for record in mess.apply(self._counted(self._source(feed), target)):
                target.send(record)
                records += 1
                if records % every == 0:
                    on_progress(self)
        if mess.records:
            truth.with_mess(mess.records).save(self.truth_folder)
        on_progress(self)
        seconds = time.monotonic() - started
        return Report(
            seed=options.seed, start=self.world.start, end=self.world.end, shoppers=options.shoppers, items=options.items,
            events=self.events, records=records, by_name=dict(self._names.most_common()),
            mess=dict(sorted(Counter(record.what for record in mess.records).items())), to=options.to,
            truth=str(self.truth_folder), seconds=round(seconds, 3), events_per_s=round(self.events / seconds, 1),
            stopped=self.stop.is_set(),
        )

    def _source(self, recommendations: Recommendations | None) -> Iterator[dict[str, Any]]:
        if self.options.lane == "live":
            return self.world.live(self.begin, self.until, recommendations, pace=self._wait)
        return self.world.history(self.until, from_=self.begin, pace=self._wait)

    def _wait(self, ts_ms: int) -> None:
        self._pace.wait(ts_ms)
        self.now_ms = ts_ms

    def _counted(self, events: Iterable[dict[str, Any]], target: Target) -> Iterator[dict[str, Any]]:
        for event in events:
            if self.stop.is_set():
                return
            made_under = decision(self.world.truth().strategies, event)
            if made_under is not None:
                target.decided(made_under)
            self.events += 1
            self._names[event.get("event") or event["type"]] += 1
            yield event
