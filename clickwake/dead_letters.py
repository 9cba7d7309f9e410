"""`clickwake dead-letters`: what could not be processed, by cause; mended on trial; sent again.

The topic is the truth: letters are read from it, so all of this works while ClickHouse is away. What was sent again is known
from ClickHouse, where it lies under its id on the lane `repair`; while that is away nothing counts as sent again.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from datetime import datetime
from typing import Any, NoReturn

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clickwake import query
from producers import repair
from producers.kafka import KafkaUnavailable, NotAcknowledged, Producer, from_the_beginning, to_its_end, unreachable
from producers.privacy import Privacy
from producers.repair import Change, Mended
from schemas import topics
from schemas.dead_letter import DeadLetter
from schemas.unreadable import UNREADABLE
from stream.settings import Settings, load
from stream.sink.message_ids import MessageIds

SHOWN_MAX = 20  # of a dry run
ASKED_AT_ONCE = 500  # ids: they travel in the address of a request
_letter = msgspec.json.Decoder(DeadLetter)
_errors = Console(stderr=True)


def read(settings: Settings, wanted: Callable[[DeadLetter], bool] = lambda _: True) -> list[DeadLetter]:
    """Every letter on the topic that is `wanted`, one of each id, the newest; others are let go at once. Without what nobody
    can read, which is said. Raises KafkaUnavailable."""
    from kafka.errors import KafkaError

    topic = topics.DEAD_LETTERS.name(settings.kafka.topic_prefix)
    found: dict[str, DeadLetter] = {}
    try:
        with from_the_beginning(settings.kafka, topic) as consumer:
            for record in to_its_end(consumer):
                if record.value is None:
                    continue
                try:
                    letter = _letter.decode(record.value)
                except UNREADABLE as error:
                    _errors.print(f"{record.topic}[{record.partition}]: the record at offset {record.offset} is left out: "
                                  f"{error}", markup=False, highlight=False, soft_wrap=True)  # fmt: skip
                    continue
                if wanted(letter):
                    found[letter.dead_letter_id] = letter
    except KafkaError as error:
        raise KafkaUnavailable(unreachable(settings.kafka, error)) from error
    return list(found.values())


def sent_again(settings: Settings, letters: Iterable[DeadLetter]) -> set[str] | None:
    """Ids of letters whose event is in ClickHouse on the lane `repair`; None while ClickHouse does not say, and why not is
    printed."""
    from clickhouse_connect.driver.exceptions import ClickHouseError

    by_event, hashed = defaultdict[tuple[str, str], set[str]](set), MessageIds(settings)
    for letter in letters:  # an event without consent to analytics lies there under a hash of its id
        ident = repair.event_id(letter)
        for one in (ident, hashed(letter.tenant, ident)):
            by_event[letter.tenant, one].add(letter.dead_letter_id)
    idents, found = sorted({ident for _, ident in by_event}), set[str]()
    sql = "SELECT DISTINCT tenant, message_id FROM events WHERE lane = 'repair' AND message_id IN {ids:Array(String)}"
    try:
        with closing(query.connected(settings.clickhouse)) as client:
            for start in range(0, len(idents), ASKED_AT_ONCE):
                rows = client.query(sql, parameters={"ids": idents[start : start + ASKED_AT_ONCE]}).result_rows
                found.update(one for tenant, ident in rows for one in by_event.get((tenant, ident), ()))
    except (query.QueryFailed, ClickHouseError, OSError) as error:  # as where no sink has made the tables yet
        _errors.print(f"ClickHouse does not say what was sent again: {error}", markup=False, highlight=False, soft_wrap=True)
        return None
    return found


def list_causes(tenant: str | None, since: datetime | None, everything: bool, as_json: bool) -> None:
    """Letters by cause, with an example and the fix where one is known."""
    settings = load()
    letters = [one for one in _read(settings, tenant)
               if since is None or one.failure.timestamp.replace(tzinfo=None) >= since]  # fmt: skip
    again = sent_again(settings, letters)
    left = [one for one in letters if everything or one.dead_letter_id not in (again or ())]
    rows = []
    for cause, group in repair.groups(left):
        newest = group[0]
        rows.append({
            "cause": cause.handle, **cause._asdict(), "letters": len(group), "newest": newest.failure.timestamp.isoformat(),
            "first_seen": min(one.first_seen for one in group).isoformat(), "example": newest.dead_letter_id,
            "message": newest.failure.messages[0].message if newest.failure.messages else "",
            "fix": " ".join(map(str, repair.suggest(newest))),
        })  # fmt: skip
    if as_json:
        _json({"causes": rows, "sent_again": None if again is None else len(again)})
        return
    table = Table("cause", "letters", "newest", "kind", "where", "why", "example", "fix")
    for row in rows:
        where = f"{row['path'] or '–'} ({row['keyword']}), {row['source']}"
        cells = (row["cause"], row["letters"], str(row["newest"])[:19], row["kind"], where, row["message"], row["example"],
                 row["fix"])  # fmt: skip
        table.add_row(*(Text(_plain(str(one))) for one in cells))
    Console().print(table)
    said = "ClickHouse is away: which were sent again is not known" if again is None else f"{len(again)} were sent again"
    Console().print(f"{len(left)} letters; {said}")


def show(ident: str, as_json: bool) -> None:
    """One letter whole."""
    letter = _chosen(_read(load()), [ident], None)[0]
    value: Any = msgspec.to_builtins(letter)
    value["payload"] = letter.payload.decode(errors="backslashreplace")
    value["fix"] = [str(one) for one in repair.suggest(letter)]
    if as_json:
        _json(value)
        return
    console = Console(markup=False, highlight=False, soft_wrap=True)
    for name, one in value.items():
        console.print(f"{name}: {_plain(one if isinstance(one, str) else msgspec.json.encode(one).decode())}")


def mend(
    idents: Sequence[str], cause: str | None, tenant: str | None, changes: Sequence[Change], as_is: bool, *, send: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Letters with the given changes, else each with its own fix: shown, or sent as well."""
    settings = load()
    mended = tried(settings, _chosen(_read(settings, tenant), idents, cause), changes, as_is=as_is)
    good = [one for one in mended if one.event is not None]
    if send:
        try:
            send_again(settings, mended)
        except (KafkaUnavailable, NotAcknowledged) as error:
            _fail(error)
    if as_json:
        _json({"letters": len(mended), "fit": len(good), "sent": len(good) if send else 0,
               "details": [_said(one) for one in mended]})  # fmt: skip
    else:
        _print(mended, len(good), send)
    if len(good) < len(mended):
        sys.exit(1)


def tried(
    settings: Settings, letters: Iterable[DeadLetter], changes: Sequence[Change] = (), *, as_is: bool = False
) -> list[Mended]:
    """Letters with the given changes, else each with its own fix, and whether they would be taken; nothing is sent."""
    privacy = Privacy(settings.privacy.model_copy(update={"pseudonym_keys": ()}))
    return [repair.mend(one, () if as_is else changes or repair.suggest(one), settings.collector.event_bytes_max,
                        settings.personalize.skew_max_ms, privacy) for one in letters]  # fmt: skip


def send_again(settings: Settings, mended: Iterable[Mended]) -> int:
    """Put those that would be taken on the events topic; returns how many, once the broker has them. Twice does no harm.
    Raises KafkaUnavailable, NotAcknowledged."""
    good = [one.event for one in mended if one.event is not None]
    topic = topics.EVENTS.name(settings.kafka.topic_prefix)
    if good:
        with Producer(settings.kafka, [topic]) as producer:
            for event in good:
                producer.send(topic, event.key, event.value)
    return len(good)


def _said(one: Mended) -> dict[str, Any]:
    return {
        "dead_letter_id": one.letter.dead_letter_id, "changes": [str(change) for change in one.changes],
        "message_id": None if one.event is None else one.event.message_id, "diff": one.diff,
        "messages": [f"{message.path}: {message.message}".removeprefix(": ") for message in one.messages],
    }  # fmt: skip


def _print(mended: list[Mended], fit: int, sent: bool) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for one in mended[:SHOWN_MAX]:
        said = _said(one)
        console.print(f"{said['dead_letter_id']}  {' '.join(said['changes']) or 'unchanged'}", style="bold", markup=False)
        console.print(_plain(one.diff) or "(the same)", markup=False)
        for message in said["messages"]:
            console.print(_plain(f"still refused: {message}"), style="red", markup=False)
    if len(mended) > SHOWN_MAX:
        console.print(f"… and {len(mended) - SHOWN_MAX} more")
    did = "sent again, on the lane repair" if sent else "could be sent: nothing was (clickwake dead-letters replay sends)"
    console.print(f"{fit} of {len(mended)} {did}")


def _chosen(letters: list[DeadLetter], idents: Sequence[str], cause: str | None) -> list[DeadLetter]:
    if bool(idents) == (cause is not None):
        _fail("name letters by their ids, or a cause as clickwake dead-letters list does")
    if cause is not None:
        found = [one for one in letters if repair.cause(one).handle == cause]
        return found or _fail(f"no letter has the cause {cause}; clickwake dead-letters list --all names them")
    by_id = {one.dead_letter_id: one for one in letters}
    if missing := [ident for ident in idents if ident not in by_id]:
        _fail(f"no letter has the id {', '.join(missing)}; clickwake dead-letters list --all names examples")
    return [by_id[ident] for ident in idents]


def _read(settings: Settings, tenant: str | None = None) -> list[DeadLetter]:
    """Of a tenant, or of all."""
    try:
        return read(settings, lambda one: tenant in (None, one.tenant))
    except KafkaUnavailable as error:
        _fail(error)


def _plain(text: str) -> str:
    """For a terminal: control characters of whatever a client sent are escaped."""
    return "".join(one if one == "\n" or one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _json(value: Any) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def _fail(error: Exception | str) -> NoReturn:
    _errors.print(f"Error: {error}", style="red", markup=False, highlight=False)
    sys.exit(1)
