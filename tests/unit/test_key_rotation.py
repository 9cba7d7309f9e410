"""Erased and suppressed people stay away whatever they are called by now, and nothing but a lift ends a suppression."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client import generate_latest

from schemas import topics
from schemas.erasure import Erased, Erasure, decode, subject
from stream.erasure.eraser import Eraser
from stream.settings import Settings
from tests.unit.test_collector_http import EVENT, KEY, FakeKafka, post
from tests.unit.test_privacy import OLD, SECRET, asked, running
from tests.unit.test_privacy import _follow as follow
from workers.erasure import Requests

NEVER: tuple[str, ...] = ()


def regulated(kind: str, keys: tuple[str, ...], user: str = "raw-user") -> FakeKafka:
    """What a collector with these keys has put on the topic."""
    client, kafka = running(pseudonym_keys=keys)
    body = {"regulationType": kind, "subjectIds": [user]}
    assert asked(client, "POST", "/v1/regulations", body).status_code == 202
    return kafka


def at(age: timedelta, **more: Any) -> dict[str, Any]:
    when = (datetime.now(UTC) - age).isoformat()
    return EVENT | {"userId": "raw-user", "originalTimestamp": when, "messageId": f"m{age}"} | more


LATE, NEW = timedelta(hours=1), timedelta(seconds=-1)


@pytest.mark.parametrize("before", [(OLD,), NEVER], ids=["another key", "no key"])
@pytest.mark.parametrize(("kind", "taken"), [("DELETE_ONLY", ["new"]), ("SUPPRESS_WITH_DELETE", [])])
def test_whoever_was_erased_under_another_name_does_not_come_back_under_the_new_one(
    before: tuple[str, ...], kind: str, taken: list[str]
) -> None:
    listed = regulated(kind, before)
    client, kafka = running(pseudonym_keys=(SECRET, *before))
    follow(client, listed)
    for event in (at(LATE, messageId="late"), at(NEW, messageId="new")):
        assert post(client, "/v1/track", event).status_code == 200, "the client is not told who is on the list"
    assert post(client, "/v1/track", at(LATE, userId="somebody-else", messageId="other")).status_code == 200
    assert [event["messageId"] for event in kafka.sent("events")] == [*taken, "other"]
    counted = generate_latest(client.app.state.collector.metrics.registry).decode()
    assert f'clickwake_collector_events_total{{result="suppressed"}} {2.0 - len(taken)}' in counted
    assert f'clickwake_collector_events_total{{result="accepted"}} {1.0 + len(taken)}' in counted


def test_a_key_that_is_held_no_more_is_what_nobody_can_be_told_by() -> None:
    client, kafka = running(pseudonym_keys=(SECRET,))
    follow(client, regulated("SUPPRESS_WITH_DELETE", (OLD,)))
    assert post(client, "/v1/track", at(NEW)).status_code == 200 and len(kafka.sent("events")) == 1


def test_what_was_done_before_a_deletion_does_not_enter_kafka_however_late_it_comes_not_even_as_a_dead_letter() -> None:
    client, kafka = running()
    asked(client, "POST", "/v1/regulations", {"regulationType": "DELETE_ONLY", "subjectIds": ["raw-user"]})
    follow(client, kafka)
    kafka.records.clear()
    assert post(client, "/v1/track", at(LATE)).status_code == 200
    assert post(client, "/v1/track", at(LATE, properties=7)).status_code == 400
    assert kafka.records == []
    assert post(client, "/v1/track", at(NEW, properties=7)).status_code == 400
    assert post(client, "/v1/track", at(NEW)).status_code == 200
    assert [record.topic for record in kafka.records] == ["clickwake.dead-letters.v1", "clickwake.events.v1"]


def test_nothing_is_taken_before_the_list_was_read() -> None:
    client, kafka = running()
    collector = client.app.state.collector
    collector.erasures.check = lambda: None  # it runs, as far as this test goes

    async def begun() -> list[int]:
        listed = asyncio.Event()
        collector._reading = asyncio.ensure_future(listed.wait())
        statuses = []
        for _ in range(2):
            transport = httpx.ASGITransport(client.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://collector") as http:
                statuses += [(await http.get("/health/ready")).status_code,
                             (await http.post("/v1/track", json=EVENT | {"writeKey": KEY})).status_code]
            listed.set()
            await collector._reading
        return statuses

    assert asyncio.run(begun()) == [503, 503, 200, 200] and len(kafka.sent("events")) == 1


def test_only_a_lift_ends_a_suppression() -> None:
    client, kafka = running()

    def regulate(kind: str) -> Erasure:
        asked(client, "POST", "/v1/regulations", {"regulationType": kind, "subjectIds": ["raw-user"]})
        follow(client, kafka)
        return decode(kafka.records[-1].value)

    regulate("SUPPRESS_WITH_DELETE")
    deletion = regulate("DELETE_ONLY")
    assert deletion.suppress and deletion.user_id == "raw-user", "compaction leaves this record alone: it says both"
    assert post(client, "/v1/track", at(NEW)).status_code == 200 and not kafka.sent("events")
    assert regulate("UNSUPPRESS").lifts
    assert post(client, "/v1/track", at(NEW)).status_code == 200 and len(kafka.sent("events")) == 1
    assert not regulate("DELETE_ONLY").suppress


AT = datetime(2026, 1, 1, tzinfo=UTC)
WHOSE = b"t/u"


def entry(days: int = 0, **more: Any) -> Erasure:
    return Erasure(erasure_id=f"e{days}", tenant="t", requested_at=AT + timedelta(days=days), **more)


def test_the_list_is_told_what_lifts_and_what_does_not() -> None:
    later = entry(1, user_id="u"), entry(1, receipt="{}"), entry(1, device=True)
    for one in later:
        erased = Erased()
        erased.note(subject(WHOSE), entry(suppress=True, user_id="u"))
        erased.note(subject(WHOSE), one)
        assert erased.suppresses(WHOSE) and erased.covers(WHOSE, 1 << 62), one
    erased.note(subject(WHOSE), entry(2))
    assert not erased.suppresses(WHOSE)
    day_ms = 86_400_000
    assert erased.covers(WHOSE, 1_767_225_600_000 + 2 * day_ms) and not erased.covers(WHOSE, 1_767_225_600_001 + 2 * day_ms)
    erased.note(subject(WHOSE), entry(1, receipt="{}"))  # of an older request, which was still being carried out
    assert erased.covers(WHOSE, 1_767_225_600_000 + 2 * day_ms) and not erased.suppresses(WHOSE)


def test_a_request_is_open_until_its_own_receipt() -> None:
    requests = Requests()
    first, second = entry(user_id="u"), entry(1, user_id="u")
    for one in (first, second, entry(2), entry(3, device=True), msgspec.structs.replace(first, devices=("a",))):
        requests.note(None, one)
    assert asyncio.run(requests.next()).erasure.devices == ("a",), "a lift takes no request back"
    requests.note(None, msgspec.structs.replace(first, user_id=None, receipt="{}"))
    assert asyncio.run(requests.next()).erasure == second
    requests.note(None, msgspec.structs.replace(second, user_id=None, receipt="{}"))
    assert not requests._open


class Listed(Erased):
    async def caught_up(self) -> None: ...


@pytest.mark.parametrize("lifted", [False, True])
def test_the_last_record_says_what_the_list_says_then_and_the_receipt_what_was_seen(lifted: bool) -> None:
    listed, unused = Listed(), Any
    eraser = Eraser(Settings(), unused, listed)  # type: ignore[arg-type]  # nothing is sent here
    request = entry(suppress=True, user_id="u")
    listed.note(subject(WHOSE), request)
    if lifted:
        listed.note(subject(WHOSE), entry(1))
    whose, entry_of_device = eraser._of_device(msgspec.structs.replace(request, suppress=False), "a", shared=False)
    assert whose == subject(b"t/a") and entry_of_device.device
    assert not entry_of_device.suppress and not entry_of_device.lifts
    assert [eraser._of_device(request, "a", shared=one)[1].suppress for one in (False, True)] == [True, False]
    listed.note(subject(b"t/a"), entry(suppress=True))
    assert eraser._of_device(msgspec.structs.replace(request, suppress=False), "a", shared=True)[1].suppress
    final = eraser._finished(request, [WHOSE], [])
    assert (final.suppress, final.user_id) == (not lifted, None) and not final.lifts
    done = {one["place"]: one for one in msgspec.json.decode(final.receipt or "")["done"]}
    seen = {place for place, one in done.items() if one["seen"]}
    refusals = topics.ADS_REFUSALS.name("clickwake")
    assert seen == {"personalize: state, changelog, store", f"Kafka {refusals}, current record"}
    unseen = " ".join(place for place, one in done.items() if not one["seen"])
    for who in ("read API", "offers worker", "delivery worker", "insights worker", "backups", refusals):
        assert who in unseen
    assert all(one["until"] for place, one in done.items() if place.startswith("Kafka") and not one["seen"])
