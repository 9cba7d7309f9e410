"""What filling in the past of segments reads from ClickHouse and writes there: pages of users with their events, when the
stream's own word begins, and the changes found.

The changes go straight to ClickHouse, not through the topic: whoever follows `clickwake.segment-changes.v1` acts on what
happens now, and a consumer that does not know a flag would write to people because of last year.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
from clickhouse_connect.driver.client import Client

from schemas.catalog import Item
from schemas.events import ms
from schemas.outputs import SegmentChange, output_id
from stream.adapters.database import clickhouse, stored_events
from stream.core.segments.segment_history import Turn
from stream.core.user.fold import id_hash
from stream.core.user.replay import Recorded, Told, in_order
from stream.core.user.state import Trait
from stream.core.user.traits import NO_NAMES, Names, Said, described
from stream.outbox import utc
from stream.sink.batch import by_months
from stream.sink.rows import segment_change_row
from stream.sink.tables import SEGMENT_CHANGES

PAGE_EVENTS_MAX = 50_000  # of a page's own users, unless one user has more: some 50 MB; each page is a scan of the table
NO_RECORD = -1  # partition and offset of what was on no topic
_PAGE = "user > {after:String} AND user <= {upto:String}"
_OURS = "tenant = {tenant:String} AND backfilled AND segment IN {segments:Array(String)}"


class Page(NamedTuple):
    """Users in the order of their ids: those after `after` up to `upto`."""

    after: str
    upto: str
    users: int

    def holds(self, user: str) -> bool:
        return self.after < user <= self.upto


def tenants(client: Client) -> list[str]:
    return [row[0] for row in client.query("SELECT DISTINCT tenant FROM events ORDER BY tenant").result_rows]


class SegmentPast:
    """One tenant's, about some segments. `run_ms`: when this run began; of two runs the later one's rows stand."""

    def __init__(self, client: Client, tenant: str, segments: Sequence[str], run_ms: int) -> None:
        self.client, self.tenant, self.segments, self.run_ms = client, tenant, list(segments), run_ms
        self._asked = {"tenant": tenant, "segments": self.segments}

    def clock_ms(self) -> int:
        """The time of the newest event: nothing is known of what comes after it."""
        found = self.client.query("SELECT max(timestamp) FROM events WHERE tenant = {tenant:String} AND user != ''",
                                  parameters=self._asked)  # fmt: skip
        return ms(found.first_row[0])

    def pages(self) -> list[Page]:
        """All users, in pages of about as many events."""
        pages: list[Page] = []
        after, upto, users, events = "", "", 0, 0
        sql = "SELECT user, count() FROM events WHERE tenant = {tenant:String} AND user != '' GROUP BY user ORDER BY user"
        with self.client.query_rows_stream(sql, parameters=self._asked) as rows:
            for user, count in rows:
                if users and events + count > PAGE_EVENTS_MAX:
                    pages.append(Page(after, upto, users))
                    after, users, events = upto, 0, 0
                upto, users, events = user, users + 1, events + count
        return [*pages, Page(after, upto, users)] if users else pages

    def events(self, page: Page, names: Names = NO_NAMES) -> Iterator[Recorded]:
        """In their order: those of the page's users, and what else their devices did, by whomever. `names`: of what rules
        ask for beside the events themselves."""
        sql = (
            f"SELECT {stored_events.COLUMNS}, traits FROM events FINAL WHERE tenant = {{tenant:String}} AND user != '' "  # noqa: S608
            f"AND NOT anonymised AND (({_PAGE}) OR anonymous_id IN (SELECT anonymous_id FROM events "
            f"WHERE tenant = {{tenant:String}} AND {_PAGE} AND anonymous_id != '')) ORDER BY timestamp, message_id"
        )
        with self.client.query_rows_stream(sql, parameters=self._parameters(page)) as rows:
            for row in rows:
                event = stored_events.event(self.tenant, tuple(row[:-1]))
                yield Recorded(event, described(event, stored_events.texts(row), names))

    def traits(self, page: Page, names: Names) -> dict[str, tuple[Said, ...]]:
        """User → what they said of themselves last, by each name that rules ask for; nothing from before they refused a
        profile."""
        sql = (f"SELECT {stored_events.COLUMNS}, traits, broker_time FROM events FINAL WHERE tenant = {{tenant:String}} "  # noqa: S608
               f"AND NOT anonymised AND {_PAGE} ORDER BY timestamp, message_id")  # fmt: skip
        found: dict[str, dict[str, Said]] = {}
        with self.client.query_rows_stream(sql, parameters=self._parameters(page)) as rows:
            for *row, broker_time in rows:
                event = stored_events.event(self.tenant, tuple(row[:-1]))
                consent, mark = event.context.consent, id_hash(event.message_id)
                if consent is not None and consent.personalization is False:
                    found.pop(event.user, None)
                    continue
                for name, text in described(event, stored_events.texts(row), names).traits.items():
                    one = Said(name, Trait(event.ts_ms, mark, text), ms(broker_time))
                    last = found.setdefault(event.user, {}).setdefault(name, one)
                    found[event.user][name] = max(last, one, key=lambda said: said.trait)
        return {user: tuple(said.values()) for user, said in found.items()}

    def alerts(self, page: Page) -> list[Told]:
        """What was said of the page's users, see `replay.in_order`."""
        sql = ("SELECT user_id, as_of_ts, state = 'raised' FROM churn_alerts FINAL WHERE tenant = {tenant:String} "
               "AND user_id > {after:String} AND user_id <= {upto:String} "
               "ORDER BY broker_time, kafka_partition, kafka_offset LIMIT 1 BY alert_id")  # fmt: skip
        rows = self.client.query(sql, parameters=self._parameters(page)).result_rows
        return in_order(Told(user, ms(at), bool(raised)) for user, at, raised in rows)

    def catalog(self) -> dict[str, Item]:
        """Items as they are now, by id: what a rule's own counts may ask of one."""
        columns = ("item_id", "title", "brand", "category", "price")
        sql = (f"SELECT {', '.join(columns)} FROM items FINAL "  # noqa: S608  # of constants
               "WHERE tenant = {tenant:String} AND removed = 0")  # fmt: skip
        with self.client.query_rows_stream(sql, parameters=self._asked) as rows:
            items = (Item(tenant=self.tenant, **dict(zip(columns, row, strict=True))) for row in rows)
            return {item.item_id: item for item in items}

    def begun_ms(self) -> dict[str, int]:
        """Segment → the stream's first change of anybody."""
        sql = ("SELECT segment, min(as_of_ts) FROM segment_changes WHERE tenant = {tenant:String} AND NOT backfilled "
               "AND segment IN {segments:Array(String)} GROUP BY segment")  # fmt: skip
        return {segment: ms(at) for segment, at in self.client.query(sql, parameters=self._asked).result_rows}

    def first_ms(self, page: Page) -> dict[tuple[str, str], int]:
        """User and segment → the stream's first change of them."""
        sql = ("SELECT user_id, segment, min(as_of_ts) FROM segment_changes WHERE tenant = {tenant:String} "
               "AND NOT backfilled AND segment IN {segments:Array(String)} "
               "AND user_id > {after:String} AND user_id <= {upto:String} GROUP BY user_id, segment")  # fmt: skip
        rows = self.client.query(sql, parameters=self._parameters(page)).result_rows
        return {(user, segment): ms(at) for user, segment, at in rows}

    def _parameters(self, page: Page) -> dict[str, object]:
        return {**self._asked, "after": page.after, "upto": page.upto}

    def write(self, numbered: Sequence[tuple[int, Turn]], rules_version: str, models: Mapping[str, str]) -> None:
        """Turns with their numbers, of a user and segment from 1; ids stand for these: the same again is the same.
        `models`: segment → the release that was asked, where one was."""
        rows = [segment_change_row(SegmentChange(
            change_id=output_id("segment-backfill", self.tenant, turn.user, turn.segment, str(number)), tenant=self.tenant,
            user_id=turn.user, segment=turn.segment, change="entered" if turn.entered else "left", number=number,
            values=turn.values, as_of_event_id=turn.as_of_event_id, as_of_ts=utc(turn.at_ms), rules_version=rules_version,
            model_version=models.get(turn.segment, ""),
        ), (NO_RECORD, NO_RECORD, self.run_ms, "")) for number, turn in numbered]  # fmt: skip
        if not rows:
            return
        columns = {**SEGMENT_CHANGES.columns, "backfilled": "Bool"}
        for positions in by_months(SEGMENT_CHANGES, rows):
            some = [(*rows[at], True) for at in positions]
            token = hashlib.blake2b(msgspec.json.encode(some), digest_size=16).hexdigest()
            data = [list(column) for column in zip(*some, strict=True)]
            clickhouse.insert(self.client, SEGMENT_CHANGES.name, columns, data, token)

    def remove(self, users: Sequence[str]) -> None:
        """What was filled in of users who were erased in the meantime."""
        self._delete("user_id IN {users:Array(String)}", users=list(users))

    def remove_older(self) -> int:
        """What former runs filled in and this one did not; returns how many rows there were."""
        return self._delete("broker_time < fromUnixTimestamp64Milli({run_ms:Int64})", run_ms=self.run_ms)

    def _delete(self, which: str, **parameters: object) -> int:
        asked = {**self._asked, **parameters}
        found = self.client.query(f"SELECT count() FROM segment_changes WHERE {_OURS} AND {which}",  # noqa: S608
                                  parameters=asked).first_row[0]  # fmt: skip
        if found:
            self.client.command(f"ALTER TABLE segment_changes DELETE WHERE {_OURS} AND {which}", parameters=asked,
                                settings={"mutations_sync": 2})  # fmt: skip
        return int(found)
