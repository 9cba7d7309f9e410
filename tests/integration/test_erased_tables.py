"""Every table that says something of people, filled by the sink, erased on the real engine; and what training reads then."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec
import pytest

from schemas import topics
from schemas.topics import Topic
from stream.adapters.database.strategies import PREDICTIONS
from stream.erasure import search
from stream.erasure.rows import ABOUT, Rows
from stream.settings import ClickHouse, Settings
from tests.golden.samples import FORMS
from tests.support.database import Database, on
from training.history import snapshot

GONE, DEVICE, STAYS = "a-user-to-be-forgotten", "their-device-alone", "a-neighbour"
ASKED_AT = datetime(2026, 11, 20, 12, tzinfo=UTC)
BEFORE, AFTER = (ASKED_AT + timedelta(days=days) for days in (-1, 1))
USERS = ("user", "user_id", "anonymous_id", "previous_id", "holder", "subject")  # names of columns that hold people


class Filling(NamedTuple):
    """A form of what travels, and which fields of it say what it is, whom it is about and when."""

    topic: Topic
    form: str
    ident: str
    at: str
    user: str = "user_id"
    about: str = "user_id"  # the table's column


FILLED = {
    "events": Filling(topics.EVENTS, "event.json", "messageId", "timestamp", "userId", "user"),
    "event_products": Filling(topics.EVENTS, "event.json", "messageId", "timestamp", "userId", "user"),
    "recommendations": Filling(topics.RECOMMENDATIONS, "recommendation.json", "recommendation_id", "as_of_ts"),
    "complements": Filling(topics.COMPLEMENTS, "complements.json", "recommendation_id", "as_of_ts"),
    "decisions": Filling(topics.DECISIONS, "decision.json", "recommendation_id", "as_of_ts"),
    "offer_decisions": Filling(topics.DECISIONS, "offer-decision.json", "recommendation_id", "as_of_ts"),
    "segment_changes": Filling(topics.SEGMENT_CHANGES, "segment-change.json", "change_id", "as_of_ts"),
    "churn_alerts": Filling(topics.CHURN_ALERTS, "churn-alert.json", "alert_id", "as_of_ts"),
    "reminders": Filling(topics.REMINDERS, "reminder.json", "reminder_id", "as_of_ts"),
    "deliveries": Filling(topics.DELIVERIES, "delivery.json", "delivery_id", "at"),
    "opinions": Filling(topics.OPINIONS, "opinion.json", "opinion_id", "said_at"),
    "dead_letters": Filling(topics.DEAD_LETTERS, "dead-letter.json", "dead_letter_id", "first_seen", "payload",
                            "JSONExtractString(payload, 'userId')"),
}  # fmt: skip


def filling(one: Filling) -> list[dict[str, Any]]:
    """The form's sample about each user, before the request and after it."""
    plain = msgspec.json.decode(FORMS[one.form].write(FORMS[one.form].sample))
    if one.form == "event.json":
        plain |= {"originalTimestamp": None, "anonymousId": DEVICE}
    found = []
    for user in (GONE, STAYS):
        said = base64.b64encode(msgspec.json.encode({"userId": user})).decode() if one.user == "payload" else user
        found += [plain | {one.user: said, one.at: at.isoformat(), one.ident: f"{one.form}-{user}-{at:%d}"}
                  for at in (BEFORE, AFTER)]  # fmt: skip
    return found


class Erased(NamedTuple):
    database: Database
    settings: Settings
    before: dict[str, list[tuple[Any, ...]]]
    learned_before: set[str]
    done: dict[str, int]


def people(database: Database, table: str) -> list[tuple[Any, ...]]:
    at = "timestamp" if table.startswith("event") else ABOUT[table].at
    about = FILLED[table].about if table in FILLED else "user_id"
    return database.rows(f"SELECT {about}, {at} > toDateTime('{ASKED_AT:%Y-%m-%d %H:%M:%S}', 'UTC') AS later "  # noqa: S608
                         f"FROM {table} FINAL ORDER BY 1, 2")


def learned(settings: Settings) -> set[str]:
    """Whom a training learns from."""
    return {event.user for event in snapshot.from_clickhouse(settings, "shop").events}


@pytest.fixture(scope="module")
def erased(clickhouse: ClickHouse) -> Iterator[Erased]:
    name = f"test_{uuid.uuid4().hex[:8]}"
    database = Database(clickhouse.model_copy(update={"database": name}))
    settings = Settings(clickhouse=database.settings)
    for at, one in enumerate({one.form: one for one in FILLED.values()}.values()):
        database.store(on(one.topic, filling(one), 10 * at))
    database.client.insert(PREDICTIONS, [("shop", user, f"{at:%d}", at) for user in (GONE, STAYS) for at in (BEFORE, AFTER)],
                           column_names=["tenant", "user_id", "item_id", "as_of_ts"])  # fmt: skip
    before, learned_before = {table: people(database, table) for table in ABOUT}, learned(settings)
    done = Rows(settings, "shop", ASKED_AT, suppress=False).delete([GONE])
    yield Erased(database, settings, before, learned_before,
                 {one.place.removeprefix("ClickHouse "): one.records for one in done})  # fmt: skip
    database.client.command(f"DROP DATABASE {name}")
    database.client.close()


@pytest.mark.parametrize("table", sorted(ABOUT))
def test_what_was_before_the_request_goes_from_every_table_and_nothing_else(erased: Erased, table: str) -> None:
    both = [(user, later) for user in (STAYS, GONE) for later in (0, 1)]
    assert erased.before[table] == both, "it was filled"
    assert people(erased.database, table) == [row for row in both if row != (GONE, 0)]
    assert erased.done[table] == 1


def test_there_is_no_table_about_people_that_an_erasure_passes_over(erased: Erased) -> None:
    """As the engine has them, not as anybody remembers them."""
    tables = erased.database.rows(
        "SELECT DISTINCT c.table FROM system.columns AS c JOIN system.tables AS t "  # noqa: S608  # names of this file
        "ON t.database = c.database AND t.name = c.table WHERE c.database = currentDatabase() "
        f"AND t.engine NOT LIKE '%View' AND c.name IN {USERS!r}")  # fmt: skip
    assert {table for (table,) in tables} | {"dead_letters"} == ABOUT.keys() == {*FILLED, PREDICTIONS}


LETTERS = [b'{"userId": 4711, "event": "x"}', b'{"previousId":4711}', b'{"userId": "4711"}', b'{"user_id": "4711"}',
           b'{"anonymousId": 4711, "event": ', b'{"user": "4711"}', b'{"properties": {"userId": 4711}}', b'["4711"]',
           b'{"userId": null, "anonymousId": "", "traits": {"id": "4711"}}']  # fmt: skip
OTHERS = [b'{"userId": 47110}', b'{"price": 4711}', b'{"userId": 47110, "price": 4711, ', b'{"userId": null}']


def test_a_letter_goes_whose_id_is_a_number_and_no_other(erased: Erased) -> None:
    """As it was refused for: what an id is compared with has no quotes then."""
    plain = msgspec.json.decode(FORMS["dead-letter.json"].write(FORMS["dead-letter.json"].sample))
    found = [plain | {"payload": base64.b64encode(one).decode(), "dead_letter_id": f"number-{at}",
                      "first_seen": BEFORE.isoformat()}
             for at, one in enumerate(LETTERS + OTHERS)]  # fmt: skip
    erased.database.store(on(topics.DEAD_LETTERS, found, 1_000))
    rows = Rows(erased.settings, "shop", ASKED_AT, suppress=False)
    assert rows.left(["4711"]) == len(LETTERS)
    rows.delete(["4711"])
    left = erased.database.rows("SELECT payload FROM dead_letters WHERE dead_letter_id LIKE 'number-%'")
    assert rows.left(["4711"]) == 0 and {payload.encode() for (payload,) in left} == {*OTHERS}
    assert list(search.in_clickhouse(erased.settings, search.Needles("shop", ["4711"]))) == []


def test_training_learns_from_nobody_who_was_erased_and_nothing_of_a_suppressed_one_is_left(erased: Erased) -> None:
    assert erased.learned_before == {GONE, STAYS}
    assert learned(erased.settings) == {GONE, STAYS}, "who came back is a new customer"
    history = snapshot.from_clickhouse(erased.settings, "shop").events
    assert [event.ts_ms > ASKED_AT.timestamp() * 1_000 for event in history if event.user == GONE] == [True]
    rows = Rows(erased.settings, "shop", ASKED_AT, suppress=True)
    rows.delete([GONE, DEVICE])
    assert rows.left([GONE, DEVICE]) == 0 and learned(erased.settings) == {STAYS}
    needles = search.Needles("shop", [GONE, DEVICE])
    assert list(search.in_clickhouse(erased.settings, needles)) == [], "nor is the device in the neighbour's events"


def test_a_device_is_shared_if_anybody_else_came_with_it(erased: Erased) -> None:
    plain = msgspec.json.decode(FORMS["event.json"].write(FORMS["event.json"].sample)) | {"tenant": "elsewhere"}
    with_whom = [("u", "theirs"), (None, "theirs"), ("u", "shared"), ("v", "shared"), ("v", "others"),
                 ("u", "account"), ("account", None), ("u", "u")]  # fmt: skip
    erased.database.store(on(topics.EVENTS, [plain | {"userId": user, "anonymousId": device, "messageId": f"with-{at}"}
                                             for at, (user, device) in enumerate(with_whom)], 2_000))  # fmt: skip
    rows = Rows(erased.settings, "elsewhere", ASKED_AT, suppress=False)
    assert rows.devices("u") == ["theirs"], "neither an account, nor themselves"
    assert rows.shared("u", ["theirs", "shared", "others", "account", "unknown"]) == ["account", "others", "shared"]
