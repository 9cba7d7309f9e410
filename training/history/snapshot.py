"""History replayed through `stream.core.user.fold`, so that training sees exactly what serving sees.

A moment is what one user touched at one time or in one order. Each moment is a training example: its items are the
targets, the user's state just before it is the input. Each end of a visit is a churn example: the features as of the
last event, and how long the user then stayed away, or at least stayed away until the history ends.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import structlog

from producers.datasets.registry import DATASETS
from producers.datasets.table import Accepted, opened
from schemas.catalog import Item
from schemas.events import ORDER_REFUNDED, Event
from schemas.unreadable import UNREADABLE
from stream.core.ranking.counts import CountsPolicy, PartitionCounts
from stream.core.ranking.index import NOTICED_ITEMS_MAX
from stream.core.user import identity
from stream.core.user.featurize import CHURN_FEATURES, Float32, Sequence, churn_features, sequence
from stream.core.user.fold import Outcome, fold, order_began, touches
from stream.core.user.state import DAY_MS, Kind, UserState
from stream.settings import Settings
from training.panel.method import Past

EVENTS_MAX_OF_ENCODER = 50  # L of the user encoder; the ring holds 64
TARGETS_MAX = 64  # of one moment; a wholesaler's order of 500 lines would drown the others
VISIT_GAP_MS = 6 * 3_600_000  # silence after which the next event is a return; shorter pauses are one visit
EVENTS_MAX = 5_000_000  # newest events of a history: some 1 KB of memory each
UNLISTED_MAX = NOTICED_ITEMS_MAX  # items that no catalog names, most touched first: no worker's index notices more of them
NO_RETURN = frozenset({ORDER_REFUNDED})  # who only gives something back has not come back: watched until then, not longer
INTEREST = frozenset({Kind.VIEW, Kind.CLICK, Kind.CART, Kind.WISH, Kind.ORDER, Kind.REVIEW, Kind.SHARE, Kind.OTHER})


NO_SEQUENCE = Sequence([], [], [], [])
log = structlog.get_logger()


class EmptyHistory(ValueError):
    """There is nothing to learn from; the message says where it was looked for and what to do."""


@dataclass(frozen=True)
class History:
    """Events of one tenant in event-time order, and its catalog."""

    name: str
    events: list[Event]
    items: dict[str, Item]

    def until(self, ts_ms: int) -> History:
        """The events before `ts_ms`, and the items known by then: touched before it, or in the catalog and touched never."""
        before: set[str] = set()
        after: set[str] = set()
        for event in self.events:
            (before if event.ts_ms < ts_ms else after).update(touch.item_id for touch in touches(event, event.ts_ms))
        items = {item_id: item for item_id, item in self.items.items() if item_id in before or item_id not in after}
        return History(self.name, [event for event in self.events if event.ts_ms < ts_ms], items)

    @property
    def from_ms(self) -> int:
        return self.events[0].ts_ms

    @property
    def to_ms(self) -> int:
        return self.events[-1].ts_ms


@dataclass(frozen=True)
class Moment:
    """One training example. `history` ends before `ts_ms`."""

    user: str
    ts_ms: int
    history: Sequence
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Visit:
    """One churn example: after `features` as of `last_ts_ms` the user stayed away for `days`, or longer if `censored`."""

    user: str
    last_ts_ms: int
    features: Float32
    days: float
    censored: bool


@dataclass
class Snapshot:
    """What a replay leaves: the users' states and live counts at the end, and the examples on the way there."""

    states: dict[str, UserState] = field(default_factory=dict)
    counts: PartitionCounts = field(default_factory=lambda: PartitionCounts(CountsPolicy()))
    moments: list[Moment] = field(default_factory=list)
    visits: list[Visit] = field(default_factory=list)
    touched: dict[str, set[str]] = field(default_factory=dict)  # user → items ever touched, beyond the state's bound


class Replay:
    """A history folded step by step through `stream.core`, so that users can be asked in between."""

    def __init__(self, history: History, policy: CountsPolicy | None = None) -> None:
        self.history = history
        self.snapshot = Snapshot(counts=PartitionCounts(policy or CountsPolicy()))
        self._open: dict[str, _OpenMoment] = {}
        self._at = 0

    def advance(self, until_ms: float) -> None:
        """Fold the events before `until_ms`; time does not go back."""
        events = self.history.events
        while self._at < len(events) and events[self._at].ts_ms < until_ms:
            _observe(self.snapshot, self._open, events[self._at], self._at)
            self._at += 1

    def finish(self, end_ms: int | None = None) -> Snapshot:
        """Fold what is left, close the moments, censor the visits that are still open at `end_ms` (default: the last event);
        nothing can be folded after this."""
        self.advance(math.inf)
        if end_ms is None:
            end_ms = self.history.to_ms if self.history.events else 0
        snapshot = self.snapshot
        for user, moment in self._open.items():
            _close(snapshot, user, moment)
        for user, state in snapshot.states.items():
            days = (end_ms - state.last_ts_ms) / DAY_MS
            if days > 0:
                snapshot.visits.append(Visit(user, state.last_ts_ms, churn_features(state), days, censored=True))
        known = {user for user, state in snapshot.states.items() if state.known}
        if known:  # an anonymous id that is never seen again is mostly a cookie that was lost, not a customer
            snapshot.visits = [one for one in snapshot.visits if one.user in known]
        snapshot.moments.sort(key=lambda one: (one.ts_ms, one.user))
        snapshot.visits.sort(key=lambda one: (one.last_ts_ms, one.user))
        return snapshot


def replay(history: History, policy: CountsPolicy | None = None, end_ms: int | None = None) -> Snapshot:
    """Fold a history; visits still open are censored at `end_ms` (default: the last event)."""
    return Replay(history, policy).finish(end_ms)


@dataclass
class _OpenMoment:
    ts_ms: int
    order_id: str | None
    history: Sequence
    targets: dict[str, None]

    def takes(self, event: Event) -> bool:
        return event.ts_ms == self.ts_ms or (self.order_id is not None and event.properties.order_id == self.order_id)


def _observe(snapshot: Snapshot, open_moments: dict[str, _OpenMoment], event: Event, offset: int) -> None:
    user, ts_ms = event.user, event.ts_ms
    state = snapshot.states.setdefault(user, UserState())
    if state.events and ts_ms - state.last_ts_ms >= VISIT_GAP_MS:
        away_days = (ts_ms - state.last_ts_ms) / DAY_MS
        visit = Visit(user, state.last_ts_ms, churn_features(state), away_days, censored=event.event in NO_RETURN)
        snapshot.visits.append(visit)
    wanted = [touch.item_id for touch in touches(event, event.ts_ms) if touch.kind in INTEREST]
    if wanted:
        moment = open_moments.get(user)
        if moment is None or not moment.takes(event):
            if moment is not None:
                _close(snapshot, user, moment)
            before = sequence(state, ts_ms - 1, EVENTS_MAX_OF_ENCODER)
            moment = open_moments[user] = _OpenMoment(ts_ms, event.properties.order_id, before, {})
        moment.targets.update(dict.fromkeys(wanted))
    outcome, added = fold(state, event, ts_ms, lateness_max_ms=0)  # in event-time order nothing is late
    if outcome is Outcome.FOLDED:
        seen = snapshot.touched.setdefault(user, set())
        for touch in added:
            seen.add(touch.item_id)
            snapshot.counts.observe(event.tenant, touch, state.ring, offset, {})
        join(snapshot, event)


def join(snapshot: Snapshot, event: Event) -> None:
    """Anonymous histories go to the known users who claim them, once the event is folded."""
    for answer in identity.join(snapshot.states, event):
        snapshot.touched.setdefault(answer.user, set()).update(touch.item_id for touch in answer.ring)


def _close(snapshot: Snapshot, user: str, moment: _OpenMoment) -> None:
    if moment.history.item_ids:
        targets = tuple(moment.targets)[:TARGETS_MAX]
        snapshot.moments.append(Moment(user, moment.ts_ms, moment.history, targets))


def moments_of(events: Iterable[Event]) -> list[tuple[int, str, tuple[str, ...]]]:
    """What each user touched at one time or in one order: (its time, user, items), in the order of time."""
    found: list[tuple[int, str, tuple[str, ...]]] = []
    open_moments: dict[str, _OpenMoment] = {}

    def close(user: str, moment: _OpenMoment) -> None:
        found.append((moment.ts_ms, user, tuple(moment.targets)))

    for event in events:
        items = [touch.item_id for touch in touches(event, event.ts_ms) if touch.kind in INTEREST]
        if not items:
            continue
        moment = open_moments.get(event.user)
        if moment is None or not moment.takes(event):
            if moment is not None:
                close(event.user, moment)
            moment = open_moments[event.user] = _OpenMoment(event.ts_ms, event.properties.order_id, NO_SEQUENCE, {})
        moment.targets.update(dict.fromkeys(items))
    for user, moment in open_moments.items():
        close(user, moment)
    return sorted(found)


def interactions(history: History, until_ms: float = math.inf) -> tuple[Past, dict[str, int]]:
    """The touches that show interest before `until_ms`, item columns in the history's order, and each user's number. Lines
    of an order are at one time, as the fold has them."""
    column = {item: at for at, item in enumerate(history.items)}
    number: dict[str, int] = {}
    began: defaultdict[str, dict[int, int]] = defaultdict(dict)
    rows = [
        (number.setdefault(event.user, len(number)), column[touch.item_id], touch.ts_ms, touch.kind)
        for event in history.events if event.ts_ms < until_ms
        for touch in touches(event, order_began(began[event.user], event, event.ts_ms)) if touch.kind in INTEREST
    ]  # fmt: skip
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    users, items, ts_ms, kinds = table[np.argsort(table[:, 2], kind="stable")].T
    return Past(users, items, ts_ms, kinds, len(column)), number


def visit_arrays(visits: list[Visit]) -> tuple[Float32, npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Features (V, F), days away (V,), censored (V,)."""
    features = np.array([one.features for one in visits], dtype=np.float32).reshape(len(visits), len(CHURN_FEATURES))
    return features, np.array([one.days for one in visits]), np.array([one.censored for one in visits], dtype=bool)


def from_events(events: Iterable[dict[str, Any]], items: Iterable[Item] = (), name: str = "events") -> History:
    """A history from canonical events in any order; of users who refused personalization it has what they did since.

    Raises `EmptyHistory`, and msgspec's ValidationError for an event that is none.
    """
    typed = (msgspec.convert(event, Event) for event in events)
    return _history(name, typed, items)


def from_file(events_path: Path, items_path: Path | None = None) -> History:
    """A history from JSON lines: canonical events, and `Item`s. A line that cannot be read is named."""
    items = list(_lines(items_path, Item)) if items_path is not None else []
    return _history(events_path.name, _lines(events_path, Event), items)


def from_dataset(name: str, path: Path) -> History:
    """A history from a data set by its registered name; its rejected and dropped rows are left out."""
    dataset = DATASETS.get(name)
    if dataset is None:
        raise EmptyHistory(f"there is no data set {name!r}; known are {', '.join(sorted(DATASETS))}")
    accepted = (row.event for row in dataset.rows(path) if isinstance(row, Accepted))
    return from_events(accepted, dataset.items(path), name)


def from_clickhouse(settings: Settings, tenant: str = "demo") -> History:
    """A tenant's history and catalog from ClickHouse.

    Raises `EmptyHistory` when the sink has stored nothing of the tenant yet, and ClickHouseMissing when no server answers,
    or it refuses.
    """
    from clickhouse_connect.driver.exceptions import ClickHouseError

    from stream.adapters.database import stored_events
    from stream.adapters.database.clickhouse import ClickHouseMissing, connect, missing

    client = connect(settings.clickhouse, wait_s=10.0)
    try:
        query = (
            f"SELECT {stored_events.COLUMNS} FROM ("  # noqa: S608  # of constants
            "SELECT * FROM events FINAL WHERE tenant = {tenant:String} AND user != '' AND NOT anonymised "
            "ORDER BY timestamp DESC, message_id LIMIT {most:UInt64}) ORDER BY timestamp, message_id"
        )
        rows = client.query(query, parameters={"tenant": tenant, "most": EVENTS_MAX}).result_rows
        if not rows:
            others = sorted(name for (name,) in client.query("SELECT DISTINCT tenant FROM events").result_rows)
            raise EmptyHistory(f"ClickHouse holds no events with a user of tenant {tenant!r}"
                               + (f", but of {', '.join(others)}: set CLICKWAKE_TRAINING__TENANT, or --tenant" if others
                                  else "; send some first"))  # fmt: skip
        events = (stored_events.event(tenant, row) for row in rows)
        return _history(f"ClickHouse, tenant {tenant}", events, _catalog(client, tenant))
    except ClickHouseError as error:
        raise ClickHouseMissing(missing(settings.clickhouse, error)) from error
    finally:
        client.close()


def _catalog(client: Any, tenant: str) -> Iterator[Item]:
    """The catalog as the catalog worker reads it, so that training encodes the same texts as serving."""
    columns = ("item_id", "title", "brand", "category", "description", "in_stock", "blocked", "pinned")
    query = f"SELECT {', '.join(columns)} FROM items FINAL WHERE tenant = {{tenant:String}} ORDER BY item_id"  # noqa: S608
    for row in client.query(query, parameters={"tenant": tenant}).result_rows:
        yield Item(tenant=tenant, **dict(zip(columns, row, strict=True)))


def _lines(path: Path, kind: type[Any]) -> Iterator[Any]:
    decoder = msgspec.json.Decoder(kind)
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield decoder.decode(line)
                except UNREADABLE as error:
                    raise ValueError(f"{path}:{number} is no {kind.__name__}: {error}; repair or remove the line") from error


def _history(name: str, events: Iterable[Event], items: Iterable[Item]) -> History:
    newest = sorted((event for event in events if event.user), key=_when)
    newest = _allowed(newest[-EVENTS_MAX:])
    if not newest:
        raise EmptyHistory(f"{name} holds no events with a user; send some first, or name another source")
    catalog = {item.item_id: item for item in items}
    about = (touch.item_id for event in newest for touch in touches(event, event.ts_ms))
    unlisted = Counter(item_id for item_id in about if item_id not in catalog)
    kept = set(sorted(unlisted, key=lambda item_id: (-unlisted[item_id], item_id))[:UNLISTED_MAX])
    catalog |= {item_id: Item(item_id=item_id, tenant=newest[0].tenant) for item_id in unlisted if item_id in kept}
    if len(unlisted) > len(kept):
        log.warning("items left out that no catalog names", of=name, left_out=len(unlisted) - len(kept), kept=len(kept))
        newest = [_less(event, catalog) for event in newest]
    return History(name, newest, catalog)


def _less(event: Event, items: Mapping[str, Item]) -> Event:
    """The event without what it says of other items; that its user was there stays."""
    if all(touch.item_id in items for touch in touches(event, event.ts_ms)):
        return event
    lines = tuple(line for line in event.properties.products if line.product_id in items)
    properties = msgspec.structs.replace(event.properties, products=lines, product_id=None)
    return msgspec.structs.replace(event, properties=properties)


def _when(event: Event) -> tuple[int, str]:
    return event.ts_ms, event.message_id


def _allowed(events: list[Event]) -> list[Event]:
    """Of events in their order those that may be learned from: who refuses a profile has none from then on and had none
    before, as in the stream, and neither has a device that nobody else used."""
    refused: dict[str, tuple[int, str]] = {}
    users: dict[str, set[str]] = {}
    for event in events:
        consent = event.context.consent
        if consent is not None and consent.personalization is False:
            refused[event.user] = _when(event)
        if event.user_id is not None and event.anonymous_id is not None:
            users.setdefault(event.anonymous_id, set()).add(event.user_id)
    for device, known in users.items():
        (user,) = known if len(known) == 1 else ("",)
        if (last := refused.get(user)) is not None:
            refused[device] = max(last, refused.get(device, last))
    return [event for event in events if event.user not in refused or _when(event) > refused[event.user]]
