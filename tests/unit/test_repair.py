"""Dead letters mended: grouped by cause, fixed where the form alone was wrong, taken by the collector's own rules."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError
from typer.testing import CliRunner

from clickwake import dead_letters as commands
from clickwake.cli import app
from clickwake.dead_letters import tried
from producers import dead_letters, repair
from producers.collector.admission import Arrival, NotAdmitted, admit
from producers.repair import Cause, Change
from schemas.dead_letter import DeadLetter, Message, Source
from schemas.events import Event
from stream.settings import Personalize, Privacy, Settings
from stream.sink.message_ids import MessageIds
from tests.support import hostile
from tests.support.database import SETTINGS
from tests.unit.test_personalize import Bench

AT = datetime(2026, 11, 25, 10, 30, tzinfo=UTC)
GOOD: dict[str, Any] = {"messageId": "m1", "type": "track", "event": "Product Viewed", "userId": "u1",
                        "properties": {"product_id": "sku-1", "price": 9.5}}  # fmt: skip


def raw_of(payload: dict[str, Any] | bytes) -> bytes:
    return payload if isinstance(payload, bytes) else msgspec.json.encode(payload)


def letter(payload: dict[str, Any] | bytes, offset: int = 0) -> DeadLetter:
    """What the collector keeps of a refused event."""
    refused = admit(raw_of(payload), Arrival(tenant="shop", received_at=AT, event_bytes_max=32_768))
    assert isinstance(refused, NotAdmitted), refused
    return dead_letters.dead_letter(
        tenant="shop", kind=refused.kind, messages=refused.messages, payload=refused.payload, at=AT,
        source=Source(topic="collector:/v1/track", partition=0, offset=offset),
    )  # fmt: skip


def changed(**fields: Any) -> dict[str, Any]:
    return GOOD | fields


def test_a_cause_is_called_the_same_whatever_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    prices = [letter(changed(messageId=f"p{n}", properties={"price": "9.5"}), n) for n in range(3)]
    other = msgspec.structs.replace(letter(changed(messageId="p0", properties={"price": "7"}), 3), tenant="outlet")
    ids = [letter(changed(messageId=f"i{n}", userId=17), 4 + n) for n in range(2)]
    again = [letter(changed(messageId="p0", properties={"price": "9.5"}), 6)]  # the client sent that one twice
    stored = list[tuple[str, str]]()
    clickhouse = SimpleNamespace(query=lambda sql, parameters: SimpleNamespace(result_rows=stored), close=lambda: None)
    monkeypatch.setattr(commands.query, "connected", lambda _: clickhouse)
    kept = [*prices, other, *ids, *again]
    monkeypatch.setattr(commands, "read", lambda _, wanted: [one for one in kept if wanted(one)])

    def say(*arguments: str) -> Any:
        return json.loads(CliRunner().invoke(app, ["dead-letters", *arguments, "--json"]).stdout)

    def listed(*more: str) -> dict[str, tuple[str, int]]:
        return {one["path"]: (one["cause"], one["letters"]) for one in say("list", *more)["causes"]}

    before = listed()
    (price, _), (user, _) = before["properties.price"], before["userId"]
    assert before == {"properties.price": (price, 5), "userId": (user, 2)}
    stored += [("shop", f"p{n}") for n in range(3)]
    assert listed() == {"properties.price": (price, 1), "userId": (user, 2)}, "the outlet has sent none"
    assert list(listed("--tenant", "shop")) == ["userId"] and listed("--all") == before
    chosen = [one["dead_letter_id"] for one in say("repair", "--cause", user)["details"]]
    assert chosen == [one.dead_letter_id for one in ids]
    assert say("repair", "--cause", price, "--tenant", "outlet")["details"][0]["dead_letter_id"] == other.dead_letter_id
    refused = CliRunner().invoke(app, ["dead-letters", "repair", "--cause", "1"])
    assert refused.exit_code == 1 and "no letter has the cause 1" in refused.stderr


def test_an_event_without_consent_counts_as_sent_again_under_the_hash_of_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = (letter(changed(messageId=ident, properties=7)) for ident in ("m1", "m2", "m3"))
    stored = ["m1", MessageIds(SETTINGS)("shop", "m2")]

    def query(sql: str, parameters: dict[str, list[str]]) -> SimpleNamespace:
        return SimpleNamespace(result_rows=[("shop", one) for one in parameters["ids"] if one in stored])

    monkeypatch.setattr(commands.query, "connected", lambda _: SimpleNamespace(query=query, close=lambda: None))
    assert commands.sent_again(SETTINGS, [first, second, third]) == {first.dead_letter_id, second.dead_letter_id}


def test_of_many_letters_a_few_are_asked_about_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [letter(changed(messageId=f"m{n}", properties=7), n) for n in range(1_300)]
    asked = list[list[str]]()

    def query(sql: str, parameters: dict[str, list[str]]) -> SimpleNamespace:
        asked.append(parameters["ids"])
        return SimpleNamespace(result_rows=[("shop", one) for one in parameters["ids"] if one.startswith("m")])

    monkeypatch.setattr(commands.query, "connected", lambda _: SimpleNamespace(query=query, close=lambda: None))
    assert commands.sent_again(SETTINGS, many) == {one.dead_letter_id for one in many}
    assert max(map(len, asked)) <= 500 and sum(map(len, asked)) == 2 * len(many), "each by its id and the hash of it"


@pytest.mark.parametrize("error", [
    commands.query.QueryFailed("no ClickHouse answers"), DatabaseError("Code: 241. Memory limit"), ConnectionError("reset"),
])
def test_why_clickhouse_does_not_say_what_was_sent_again_is_told(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    def refused(*_: object, **__: object) -> None:
        raise error

    client = SimpleNamespace(query=refused, close=lambda: None)
    monkeypatch.setattr(commands.query, "connected", refused if "answers" in str(error) else lambda _: client)
    assert commands.sent_again(SETTINGS, [letter(changed(properties=7))]) is None
    assert str(error) in capsys.readouterr().err


@pytest.mark.parametrize(("payload", "fix"), [
    (changed(properties={"product_id": "sku-1", "price": "9.50 €"}), "--set properties.price=9.5"),
    (changed(userId=17), '--set userId="17"'),
    (changed(properties={"product_id": 4711}), '--set properties.product_id="4711"'),
    (changed(originalTimestamp=1_795_602_600), '--set originalTimestamp="2026-11-25T10:30:00+00:00"'),
    (changed(timestamp="2026-11-25 10:30:00"), '--set timestamp="2026-11-25T10:30:00+00:00"'),
    ({"type": "track", "event": "Product Viewed", "user_id": "u1", "messageId": "m1"}, "--rename user_id=userId"),
    (changed(properties={"products": [{"sku": "sku-1", "price": 2}]}), "--rename properties.products[0].sku=product_id"),
])
def test_what_is_wrong_in_form_alone_has_a_fix_that_works(payload: dict[str, Any], fix: str) -> None:
    one = letter(payload)
    changes = repair.suggest(one)
    assert [str(change) for change in changes] == [fix]
    mended = repair.mend(one, changes)
    assert mended.event is not None, mended.messages
    event = msgspec.json.decode(mended.event.value, type=Event)
    assert (event.lane, event.tenant, event.message_id, mended.event.key.split(b"/")[0]) == ("repair", "shop", "m1", b"shop")
    assert event.ts_ms == round(AT.timestamp() * 1000)
    assert mended.diff.startswith("--- kept") and sum(line.startswith("+ ") for line in mended.diff.splitlines()) >= 1


@pytest.mark.parametrize(("skew_max_ms", "ahead_min"), [(300_000, 0), (3_600_000, 10)])
def test_what_is_mended_may_be_as_far_ahead_as_at_the_collector(skew_max_ms: int, ahead_min: int) -> None:
    one = letter(changed(userId=17, timestamp=(AT + timedelta(minutes=10)).isoformat()))
    (mended,) = tried(Settings(personalize=Personalize(skew_max_ms=skew_max_ms)), [one])
    assert mended.event is not None, mended.messages
    assert msgspec.json.decode(mended.event.value, type=Event).timestamp == AT + timedelta(minutes=ahead_min)


def test_what_was_refused_before_consent_was_stated_gets_the_default() -> None:
    one = letter(changed(userId=17))
    refusing = Privacy.model_validate({"pseudonym_keys": ("k" * 32,), "consent": {"shop": {"personalization": False}}})
    (mended,) = tried(Settings(privacy=refusing), [one])
    assert mended.event is not None, mended.messages
    event = msgspec.json.decode(mended.event.value, type=Event)
    assert event.context.consent is not None and event.context.consent.personalization is False
    assert event.user_id == "17", "what a letter keeps is as it was sent on: it has its pseudonyms"


def test_what_would_be_sent_is_shown_with_the_default_and_without_the_end_of_an_address() -> None:
    kept = changed(userId=17, context={"ip": "203.0.113.77"})
    one = msgspec.structs.replace(letter(kept), payload=raw_of(kept))
    (mended,) = tried(Settings(privacy=Privacy.model_validate({"consent": {"shop": {"personalization": False}}})), [one])
    assert mended.event is not None, mended.messages
    sent = json.loads(mended.event.value)["context"]
    assert sent["ip"] == "203.0.113.0" and sent["consent"]["personalization"] is False
    shown = [line.strip("+ ,") for line in mended.diff.splitlines() if line.startswith("+ ")]
    assert '"ip": "203.0.113.0"' in shown and '"personalization": false' in shown
    assert json.loads(one.payload)["context"] == {"ip": "203.0.113.77"}, "what is kept is as it was"


@pytest.mark.parametrize("payload", [
    b"{", b"\xff\xfe", b"[1]", changed(properties={"product_id": "sku-1", "price": "cheap"}), changed(event=""),
    changed(userId="x" * 300), changed(originalTimestamp="yesterday"), changed(originalTimestamp=1e300),
    {"type": "alias", "userId": "u1"},
])
def test_what_was_meant_is_not_guessed(payload: dict[str, Any] | bytes) -> None:
    one = letter(payload)
    assert repair.suggest(one) == ()
    assert repair.mend(one, ()).event is None


SPOILT: list[dict[str, Any] | bytes] = [
    changed(timestamp=1e20), changed(originalTimestamp=-1e300), changed(userId=17, receivedAt="x"),
    changed(userId=17, receivedAt="2026-11-25T10:00:00", timestamp="2026-11-25T09:00:00Z"),
    changed(userId=17, receivedAt="9999-12-31T23:59:59.999Z", timestamp="2026-11-25T09:00:00Z"),
    changed(userId=17, receivedAt="0001-01-01T00:00:00+14:00"),
]  # fmt: skip
OF_THE_TOPIC = Source(topic="clickwake.events.v1", partition=0, offset=3)


def test_no_letter_keeps_the_others_from_being_mended() -> None:
    """Whatever it is about, and whoever found it wrong: it has a fix or none, and is taken or not."""
    arrival = Arrival(tenant="shop", received_at=AT, event_bytes_max=32_768)
    wrong = [*map(raw_of, SPOILT), *hostile.payloads(seed=7, count=1_500)]
    letters = []
    for offset, raw in enumerate(wrong):
        refused = admit(raw, arrival)
        if isinstance(refused, NotAdmitted):
            letters.append(letter(raw, offset))
            letters.append(msgspec.structs.replace(letters[-1], source=OF_THE_TOPIC))
            odd = datetime(9999, 12, 31, tzinfo=UTC)  # an event's own `repair` may say so
            letters.append(msgspec.structs.replace(letters[-1], first_seen=odd))
    assert len(letters) > 1_000 and len(repair.groups(letters)) > 20
    assert len(tried(Settings(), letters)) == len(letters)


def test_when_it_came_is_not_the_clients_to_say() -> None:
    own = {"timestamp": "2026-11-25T09:00:00.000Z"}
    for received in ("x", "2026-11-25T10:00:00", "2030-01-01T00:00:00Z"):
        one = letter(changed(userId=17, receivedAt=received, **own))
        mended = repair.mend(one, repair.suggest(one))
        assert mended.event is not None, mended.messages
        assert msgspec.json.decode(mended.event.value, type=Event).received_at == AT


def test_letters_are_grouped_by_cause_whatever_the_index() -> None:
    wrong = [changed(properties={"products": [{"product_id": "a"}] * n + [{"product_id": 1}]}) for n in range(3)]
    letters = [letter(one, at) for at, one in enumerate(wrong)] + [letter(b"{", 9)]
    first, second = repair.groups(letters)
    assert first[0] == Cause("undecodable", "properties.products[].product_id", "type", "collector:/v1/track")
    assert (len(first[1]), len(second[1]), second[0].keyword) == (3, 1, "json")


def test_the_same_letter_is_the_same_event_however_often_it_is_mended() -> None:
    without = {name: value for name, value in GOOD.items() if name != "messageId"} | {"userId": 17}
    one = letter(without)
    twice = [repair.mend(one, repair.suggest(one)).event for _ in range(2)]
    assert twice[0] == twice[1] and twice[0] is not None
    assert twice[0].message_id == repair.event_id(one) == f"dead-letter-{one.dead_letter_id}"


async def test_one_that_fails_again_counts_on_from_the_first_time() -> None:
    one = letter(changed(userId=17))
    mended = repair.mend(one, repair.suggest(one))
    assert mended.event is not None
    sent = msgspec.json.decode(mended.event.value)
    assert sent["repair"] == {"attempts": 1, "firstSeen": one.first_seen.isoformat().replace("+00:00", "Z")}
    bench = Bench()
    await bench.feed(msgspec.json.encode(sent | {"timestamp": "no time"}))
    (again,) = bench.outputs.values("dead-letters")
    assert again["attempts"] == 2 and again["first_seen"] == sent["repair"]["firstSeen"]
    assert again["failure"]["timestamp"] != again["first_seen"]


def test_changes_by_hand_and_paths_that_are_not_there() -> None:
    one = letter(changed(userId=17, extra={"a": 1}, products=[1]))
    by_hand = [repair.parse("set", "userId=u9"), repair.parse("drop", "extra.a"), repair.parse("rename", "extra=more")]
    mended = repair.mend(one, by_hand)
    assert mended.event is not None
    sent = json.loads(mended.event.value)
    assert (sent["userId"], sent["more"], "extra" in sent) == ("u9", {}, False)
    for gone in (Change("drop", "nobody.there"), Change("rename", "no", "where"), Change("set", "userId.x", 1),
                 Change("rename", "products[0]", "x")):
        assert [message.keyword for message in repair.mend(one, [gone]).messages] == ["path"]
    for wrong in ("", "=x"):
        with pytest.raises(ValueError, match="PATH=VALUE"):
            repair.parse("set", wrong)


def nested(levels: int) -> bytes:
    return msgspec.json.encode(GOOD)[:-1] + b', "more": ' + b'{"a":' * levels + b"1" + b"}" * (levels + 1)


def test_what_is_nested_deeply_is_mended_as_far_as_it_can_be_shown() -> None:
    without = [Change("drop", "more")]
    assert repair.mend(letter(nested(40)), without).event is not None
    assert [one.keyword for one in repair.mend(letter(nested(400)), without).messages] == ["depth"]


def test_what_was_cut_or_holds_no_event_is_said_so() -> None:
    big = letter(msgspec.json.encode(changed(review="x" * 200_000)))
    assert "cut" in repair.mend(big, ()).messages[0].message
    other = msgspec.structs.replace(letter(b"{"), kind="sink_rejected")
    assert "holds no event" in repair.mend(other, ()).messages[0].message


def test_a_letter_of_history_keeps_its_own_time_and_gets_none_of_today() -> None:
    of_file = Source(topic="events", partition=0, offset=7)
    past = {"timestamp": "2024-05-01T10:00:00.000Z", "sentAt": "2024-05-01T10:00:30.000Z"}
    kept = msgspec.structs.replace(letter(changed(**past, userId=7)), source=of_file)
    named = Change("set", "userId", "u1")
    mended = repair.mend(kept, (named,)).event
    assert mended is not None
    event = msgspec.json.decode(mended.value, type=Event)
    assert (event.timestamp, event.lane) == (datetime(2024, 5, 1, 10, tzinfo=UTC), "repair")
    untimed = repair.mend(kept, (named, Change("drop", "timestamp")))
    assert [(one.path, one.keyword) for one in untimed.messages] == [("timestamp", "required")]


def test_a_letter_from_the_topic_keeps_its_time() -> None:
    """As personalize writes them: the event had been stamped already."""
    at = "2026-11-25T09:00:00.000Z"
    stamped = changed(tenant="shop", lane="live", timestamp=at, originalTimestamp=at, receivedAt=at, userId=5)
    one = dead_letters.dead_letter(
        tenant="shop", kind="undecodable", payload=msgspec.json.encode(stamped), at=AT,
        messages=[Message(path="userId", keyword="type", message="Expected `str | null`, got `int`")],
        source=Source(topic="clickwake.events.v1", partition=0, offset=3),
    )  # fmt: skip
    mended = repair.mend(one, repair.suggest(one))
    assert mended.event is not None
    assert msgspec.json.decode(mended.event.value, type=Event).timestamp == datetime(2026, 11, 25, 9, tzinfo=UTC)
