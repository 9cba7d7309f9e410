"""What a replay sends of a person: what the collector would, and nothing of whom the list of erasures names."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from producers import replay as replay_module
from producers.datasets import online_retail
from producers.replay import Replay, Summary, count_rows
from schemas.dead_letter import DeadLetter
from schemas.erasure import Erased, Erasure, subject
from schemas.events import key
from stream.pseudonyms import pseudonym
from stream.settings import ConsentDefault, Privacy, Settings

SECRET = "s" * 32
AT = "2024-05-01T10:00:00Z"


class Sent:
    """In place of the producer."""

    def __init__(self, *given: Any, **more: Any) -> None:
        self.records: list[tuple[str, bytes, bytes]] = []

    def __enter__(self) -> Sent:
        return self

    def __exit__(self, *error: Any) -> None: ...

    def send(self, topic: str, record_key: bytes, value: bytes) -> None:
        self.records.append((topic, record_key, value))

    def flush(self) -> None: ...

    def events(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(value) for topic, _, value in self.records if ".events." in topic]

    def letters(self) -> list[DeadLetter]:
        return [msgspec.json.decode(value, type=DeadLetter) for topic, _, value in self.records if ".dead-" in topic]


@pytest.fixture
def erased() -> Erased:
    return Erased()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch, erased: Erased) -> Sent:
    kafka = Sent()
    monkeypatch.setattr(replay_module, "Producer", lambda *given, **more: kafka)
    monkeypatch.setattr(replay_module, "listed", lambda settings: erased)
    return kafka


def replayed(folder: Path, dataset: str, *lines: dict[str, Any] | str, tenant: str = "shop", **privacy: Any) -> Summary:
    path = folder / f"rows-{len(list(folder.iterdir()))}"
    path.write_text("\n".join(one if isinstance(one, str) else msgspec.json.encode(one).decode() for one in lines))
    settings = Settings(home=folder / "home", privacy=Privacy.model_validate(privacy))
    return Replay(settings, dataset, path, tenant=tenant).run()


def view(user: str, **more: Any) -> dict[str, Any]:
    return {"type": "track", "event": "Product Viewed", "userId": user, "timestamp": AT} | more


HEADER = ",".join(online_retail.HEADER)
ORDER = "536365,85123A,WHITE HOLDER,6,2024-05-01 08:26:00,2.55,raw-customer,France"


def test_with_pseudonyms_no_raw_id_leaves_neither_in_events_nor_in_letters(tmp_path: Path, sent: Sent) -> None:
    page = {"page": {"url": "https://shop.example/?u=raw-customer"}, "ip": "203.0.113.77"}
    replayed(tmp_path, "online-retail", HEADER, ORDER, ORDER.replace("2.55", "0"), ORDER.replace(",6,", ",raw-customer,"),
             pseudonym_keys=(SECRET,))  # fmt: skip
    replayed(tmp_path, "events", view("raw-customer", context=page), view("raw-customer", type="raw-customer"),
             '{"userId": "raw-customer"', pseudonym_keys=(SECRET,))  # fmt: skip
    assert [len(sent.events()), len(sent.letters())] == [2, 4]
    assert not any(b"raw-customer" in record_key + value for _, record_key, value in sent.records)
    ordered, viewed = sent.events()
    user = pseudonym(SECRET.encode(), "shop", "raw-customer")
    assert ordered["userId"] == viewed["userId"] == user
    assert {record_key for topic, record_key, _ in sent.records if ".events." in topic} == {key("shop", user)}
    assert viewed["context"] == {"page": {"url": f"https://shop.example/?u={user}"}, "ip": "203.0.113.0"}
    assert viewed["messageId"].startswith("pn_"), "a hash of what was sent: ids could be tried out"
    for letter in sent.letters():
        assert (letter.payload, letter.payload_bytes) == (b"", 0) and "not kept" in letter.failure.messages[0].message
    assert [one.failure.messages[0].keyword for one in sent.letters()] == ["no_price", "type", "enum", "json"]


def test_letters_without_their_rows_are_told_apart_and_are_the_same_twice(tmp_path: Path, sent: Sent) -> None:
    for line in ("{one", "{other", "{one"):
        replayed(tmp_path, "events", line, tenant="shop", pseudonym_keys=(SECRET,))
        (tmp_path / "home").rename(tmp_path / f"home-{len(sent.records)}")
    first, other, again = (letter.dead_letter_id for letter in sent.letters())
    assert first == again != other


def test_without_pseudonyms_a_letter_keeps_its_row(tmp_path: Path, sent: Sent) -> None:
    replayed(tmp_path, "events", "{broken")
    (letter,) = sent.letters()
    assert letter.payload == b"{broken"
    assert letter.failure.messages[0].message.startswith("row 1 of events: JSON is malformed")


def test_in_a_letter_addresses_lose_their_end_too(tmp_path: Path, sent: Sent) -> None:
    replayed(tmp_path, "events", view("u1", properties=7, context={"ip": "203.0.113.77"}), view("u1", text="y" * 33_000))
    typed, large = sent.letters()
    assert msgspec.json.decode(typed.payload) == view("u1", properties=7, context={"ip": "203.0.113.0"})
    assert [one.kind for one in (typed, large)] == ["undecodable", "too_large"]


def test_what_is_stamped_stays_where_an_id_is_the_same_text(tmp_path: Path, sent: Sent) -> None:
    replayed(tmp_path, "events", view("the-shop"), view("2024-05-01"), tenant="the-shop", pseudonym_keys=(SECRET,))
    assert {(one["tenant"], one["lane"], one["timestamp"]) for one in sent.events()} == {
        ("the-shop", "import", "2024-05-01T10:00:00.000Z")}  # fmt: skip


def test_consent_is_stated_where_history_says_nothing(tmp_path: Path, sent: Sent) -> None:
    replayed(tmp_path, "events", view("u1"), consent={"shop": ConsentDefault(personalization=False)})
    (event,) = sent.events()
    assert event["context"]["consent"]["personalization"] is False and event["context"]["consent"]["assumed"]


@pytest.mark.parametrize("keys", [(), (SECRET,)], ids=["as they are", "pseudonyms"])
def test_of_a_row_without_consent_to_analytics_the_reason_is_kept_alone(
    tmp_path: Path, sent: Sent, keys: tuple[str, ...]
) -> None:
    no = {"context": {"consent": {"analytics": False}}}
    for at in range(2):
        replayed(tmp_path, "events", view("raw-customer", properties=at, **no), pseudonym_keys=keys)
    default = {"shop": ConsentDefault(analytics=False)}
    replayed(tmp_path, "events", view("raw-customer", properties=7), consent=default, pseudonym_keys=keys)
    replayed(tmp_path, "online-retail", HEADER, ORDER.replace("2.55", "0"), consent=default, pseudonym_keys=keys)
    letters = sent.letters()
    assert len({one.dead_letter_id for one in letters}) == len(sent.records) == 4
    assert not any(b"raw-customer" in record_key + value for _, record_key, value in sent.records)
    for letter in letters:
        assert letter.payload == b"" and letter.failure.messages[0].message.count("the payload is not kept") == 1


@pytest.mark.parametrize("keys", [(), (SECRET,)], ids=["as they are", "pseudonyms"])
@pytest.mark.parametrize("known_as", ["raw-customer", pseudonym(SECRET.encode(), "shop", "raw-customer")])
@pytest.mark.parametrize("suppress", [True, False])
def test_of_whom_the_list_names_nothing_is_sent_not_even_a_letter(
    tmp_path: Path, sent: Sent, erased: Erased, keys: tuple[str, ...], known_as: str, suppress: bool
) -> None:
    erased.note(subject(key("shop", known_as)), Erasure(erasure_id="e", tenant="shop", suppress=suppress, user_id=known_as,
                                                        requested_at=datetime(2024, 6, 1, tzinfo=UTC)))  # fmt: skip
    after = view("raw-customer", timestamp="2024-07-01T00:00:00Z", messageId="after")
    summary = replayed(tmp_path, "events", view("raw-customer"), view("raw-customer", properties=7), after,
                       view("somebody-else", messageId="other"),
                       '{"userId": "raw-customer", "type": "track"}', pseudonym_keys=keys)  # fmt: skip
    if known_as != "raw-customer" and not keys:
        assert summary.dropped == {}, "nobody can tell by a key that is not held"
        return
    taken = ["other"] if suppress else ["other", "after"]
    assert [event["messageId"] for event in sent.events()] == taken and not sent.letters()
    assert (summary.rows, summary.accepted, summary.dropped) == (5, len(taken), {"suppressed": 5 - len(taken)})
    sent.records.clear()
    assert replayed(tmp_path, "online-retail", HEADER, ORDER, pseudonym_keys=keys).dropped == {"suppressed": 1}
    assert not sent.events()


def test_rows_are_counted_with_a_header_and_without(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    for text, lines in (("", 0), ("a", 1), ("a\n", 1), ("a\nb", 2), ("a\nb\n", 2)):
        path.write_text(text)
        assert (count_rows(path, "events"), count_rows(path, "taobao")) == (lines, max(0, lines - 1))


def test_an_erased_device_does_not_come_back_beside_another_user(tmp_path: Path, sent: Sent, erased: Erased) -> None:
    erased.note(subject(key("shop", "erased-device")), Erasure(
        erasure_id="e", tenant="shop", user_id="erased-device", requested_at=datetime(2024, 6, 1, tzinfo=UTC)))  # fmt: skip
    replayed(tmp_path, "events", view("u1", anonymousId="erased-device", messageId="before"),
             view("u1", anonymousId="another", messageId="kept"),
             view("u1", anonymousId="erased-device", messageId="after", timestamp="2024-07-01T00:00:00Z"))  # fmt: skip
    assert {event["messageId"]: event.get("anonymousId") for event in sent.events()} == {
        "before": None, "kept": "another", "after": "erased-device"}  # fmt: skip
