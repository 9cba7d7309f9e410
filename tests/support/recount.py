"""A second opinion: what a log of events holds, counted in plain Python from the words of docs/faults.md ("What becomes of
an event"). Nothing of the product is called, so that a fault in its folding is not in the truth it is held to as well.

For what the tests of faults send: canonical JSON, one product an event at most, no ids of orders, nobody erased, each user
in one partition. What these rules say nothing about raises `NotCounted`.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Protocol

from stream.core.user.state import SEEN_IDS_MAX as REMEMBERED_MAX  # ids of one user
from stream.settings import Personalize


class NotCounted(Exception):
    """A record that these rules say nothing about."""


class Record(Protocol):
    """As the broker keeps it."""

    partition: int
    offset: int
    timestamp: int  # when it was appended, ms
    value: bytes | None


class User:
    """What is known of one user, by the events that were folded."""

    def __init__(self) -> None:
        self.events = self.orders = 0
        self.touches: Counter[str] = Counter()  # by item
        self.first_ms = self.last_ms = 0
        self.newest = ""  # id of the event at `last_ms`
        self.answers: set[str] = set()  # of which the last recommendation names one; empty: nobody owes any
        self.remembered: dict[str, int] = {}  # id → time, ms
        self.forgotten_ms = 0  # ids of events up to then may be forgotten

    def end_of(self, ident: str, ts_ms: int, behind_ms: int, lateness_max_ms: int) -> str:
        if ident in self.remembered:
            return "duplicate"
        return "late" if ts_ms <= self.forgotten_ms or behind_ms > lateness_max_ms else "folded"

    def fold(self, ident: str, ts_ms: int, name: str, item: str, live: bool) -> None:
        self.events += 1
        self.orders += name == "Order Completed"
        self.touches.update([item] if item else [])
        self.first_ms = min(self.first_ms or ts_ms, ts_ms)
        self.last_ms, self.newest = max((self.last_ms, self.newest), (ts_ms, ident))
        if live:
            self.answers = {self.newest}
        elif self.answers:  # nobody waits for it, but who answers later knows of it
            self.answers.add(self.newest)
        self.remembered[ident] = ts_ms
        self._forget()

    def _forget(self) -> None:
        """The ids of the oldest time, all of them, while there are too many; but never all there are."""
        while len(self.remembered) > REMEMBERED_MAX:
            oldest_ms = min(self.remembered.values())
            kept = {known: at for known, at in self.remembered.items() if at > oldest_ms}
            if not kept:
                return
            self.forgotten_ms, self.remembered = oldest_ms, kept


class Recount:
    """Keys of users are "tenant/user"."""

    def __init__(self) -> None:
        self.ends: defaultdict[int, Counter[str]] = defaultdict(Counter)  # partition → end → records
        self.rejected: set[tuple[int, int]] = set()  # partition, offset
        self.users: dict[str, User] = {}  # who has a profile
        self.stored: set[tuple[str, str]] = set()  # tenant, id: each once, whatever became of it
        self.hours: Counter[tuple[str, str, str, str]] = Counter()  # tenant, hour, item, name
        self.days: defaultdict[tuple[str, str, str], set[str]] = defaultdict(set)  # tenant, day, name → users
        self.done: Counter[tuple[str, str]] = Counter()  # user, name


def recount(records: Iterable[Record], settings: Personalize) -> Recount:
    """Of the whole topic, each partition in order."""
    found = Recount()
    clocks_ms: Counter[int] = Counter()  # partition → the newest live event
    for record in records:
        end, event = _read(record, settings.skew_max_ms)
        if event is not None:
            key, ident, ts_ms = f"{event['tenant']}/{_who(event)}", event["messageId"], _ms(event["timestamp"])
            _store(found, event, key, ts_ms)
            live = event.get("lane", "live") == "live"
            if end == "dropped:no_consent":
                found.users.pop(key, None)
            else:
                if live:
                    clocks_ms[record.partition] = max(clocks_ms[record.partition], ts_ms)
                user = found.users.get(key, User())
                behind_ms = clocks_ms[record.partition] - ts_ms if live else 0
                end = user.end_of(ident, ts_ms, behind_ms, settings.lateness_max_ms)
                if end == "folded":
                    found.users[key] = user
                    user.fold(ident, ts_ms, event.get("event", ""), event["properties"].get("product_id", ""), live)
        found.ends[record.partition][end] += 1
        if end == "rejected":
            found.rejected.add((record.partition, record.offset))
    return found


def _read(record: Record, skew_max_ms: int) -> tuple[str, dict[str, Any] | None]:
    """How it ends if not by what is known of its user, and the event unless it is none."""
    if record.value is None:
        return "dropped:tombstone", None
    try:
        event: dict[str, Any] = json.loads(record.value)
    except ValueError:
        return "rejected", None
    properties, consent = event.get("properties", {}), event.get("context", {}).get("consent") or {}
    if {"products", "order_id"} & properties.keys() or consent.get("analytics") is False:
        raise NotCounted(f"partition {record.partition}, offset {record.offset}: {event}")
    if _ms(event["timestamp"]) > record.timestamp + skew_max_ms:
        return "rejected", None
    return "dropped:no_consent" if consent.get("personalization") is False else "", event | {"properties": properties}


def _who(event: dict[str, Any]) -> str:
    return str(event.get("userId") or event["anonymousId"])


def _store(found: Recount, event: dict[str, Any], key: str, ts_ms: int) -> None:
    """What ClickHouse counts: each id once, also what is late or of somebody without a profile."""
    tenant, name, item = event["tenant"], event.get("event", ""), event["properties"].get("product_id", "")
    if (tenant, event["messageId"]) in found.stored:
        return
    found.stored.add((tenant, event["messageId"]))
    at = datetime.fromtimestamp(ts_ms / 1_000, tz=UTC)
    if item:
        found.hours[tenant, f"{at:%Y-%m-%d %H}", item, name] += 1
    found.days[tenant, f"{at:%Y-%m-%d}", name].add(key)
    found.done[key, name] += 1


def _ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1_000)
