"""Where ids are pseudonyms, the read API is asked by the ids that its callers know: it finds who is meant, under whichever
key, answers by the id that was asked, and logs the pseudonym alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from schemas.erasure import Erasure, subject
from stream.outbox import utc
from stream.pseudonyms import Pseudonyms
from stream.settings import Privacy
from tests.support.fakes import T0_MS
from tests.support.read_api import HISTORIES, Shop, folded

NEW, OLD = "n" * 32, "o" * 32
BOTH = Privacy.model_validate({"pseudonym_keys": (NEW, OLD)})


def called(user: str, key: str = NEW) -> str:
    return Pseudonyms(Privacy.model_validate({"pseudonym_keys": (key,)})).of("t", user)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """`seen` was here since the key was changed and before, `before` only before it, `raw` came in by an import."""
    made = Shop(tmp_path / "home", privacy=BOTH)
    states: Any = made.api.replica
    first, second = (folded(HISTORIES[user]) for user in ("u1", "u2"))
    states.states = {f"t/{called('seen')}": first, f"t/{called('seen', OLD)}": second,
                     f"t/{called('before', OLD)}": second, "t/raw": second}  # fmt: skip
    return made


KNOWN = {"seen": "m2", "before": "m4", "raw": "m4", "nobody": ""}


@pytest.mark.parametrize("user", KNOWN)
async def test_each_question_finds_the_user_and_answers_by_the_id_that_was_asked(shop: Shop, user: str) -> None:
    why = await shop.get(f"/v1/why/{user}/i4")
    answers = [
        (await shop.get(f"/v1/recommendations/{user}")).json(),
        (await shop.post("/v1/recommendations", {"users": ["nobody", user]})).json()["recommendations"][1],
        (await shop.post("/v1/rank", {"user_id": user, "items": ["i4", "i5"]})).json(),
        (await shop.get(f"/v1/offers/{user}", params={"placement": "home"})).json(),
        (await shop.post("/v1/offers", {"user_id": user, "placement": "home"})).json(),
        why.json(),
    ]
    assert {(one["user_id"], one["as_of_event_id"]) for one in answers} == {(user, KNOWN[user])}
    known = await shop.get(f"/v1/users/{user}")
    if user == "nobody":
        assert known.status_code == 404 and "'nobody'" in known.json()["error"]["message"]
    else:
        assert known.status_code == 200 and known.json()["user_id"] == user and known.json()["events"] == 2
    assert {one.user_id for one in shop.logged()} == {called(user), called("nobody")}, "what comes of it comes under this"


async def test_what_is_logged_names_nobody(shop: Shop) -> None:
    for user in KNOWN:
        assert (await shop.get(f"/v1/recommendations/{user}")).json()["user_id"] == user
        await shop.post("/v1/rank", {"user_id": user, "items": ["i1"]})
        await shop.post("/v1/offers", {"user_id": user, "placement": "home"})
    logged = shop.logged()
    assert len(logged) == 12
    assert {one.user_id for one in logged} == {called(user) for user in KNOWN}


async def test_who_is_known_by_a_pseudonym_may_be_asked_about_by_it(shop: Shop) -> None:
    """As the tables and the topics name them."""
    for name in (called("seen"), called("before", OLD)):
        found = (await shop.get(f"/v1/users/{name}")).json()
        assert found["user_id"] == name and found["events"] == 2
    stranger = called("stranger")
    await shop.get(f"/v1/recommendations/{stranger}")
    assert [one.user_id for one in shop.logged()] == [stranger], "of a pseudonym none is made"


async def test_without_keys_ids_are_as_they_are(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "home")
    assert (await shop.get("/v1/users/u1")).json()["user_id"] == "u1"
    await shop.get("/v1/recommendations/u1")
    assert [one.user_id for one in shop.logged()] == ["u1"]


async def ask_everything(shop: Shop, user: str) -> None:
    for answer in (await shop.get(f"/v1/recommendations/{user}"), await shop.get(f"/v1/offers/{user}?placement=home"),
                   await shop.post("/v1/recommendations", {"users": [user]}),
                   await shop.post("/v1/rank", {"user_id": user, "items": ["i1"]}),
                   await shop.post("/v1/offers", {"user_id": user, "placement": "home"})):  # fmt: skip
        assert answer.status_code == 200


def forgotten(shop: Shop, name: str, at_ms: int, **more: Any) -> None:
    """As the reader of the list would note it."""
    shop.api.erasures.erased.note(subject(f"t/{name}".encode()),
                                  Erasure(erasure_id="e", tenant="t", requested_at=utc(at_ms), user_id=name, **more))


@pytest.mark.parametrize("listed", [called("seen"), called("seen", OLD), "seen"])
async def test_who_is_suppressed_under_whichever_name_is_answered_and_not_logged(shop: Shop, listed: str) -> None:
    forgotten(shop, listed, T0_MS - 1, suppress=True)
    await ask_everything(shop, "seen")
    assert shop.logged() == []
    await ask_everything(shop, "before")
    assert {one.scenario for one in shop.logged()} == {"for_you", "rank", "offer"}, "of others everything is"


async def test_what_is_decided_by_an_erased_past_is_not_logged_and_what_comes_after_it_is(tmp_path: Path) -> None:
    """However far ahead the clock of its last event was, or what came after the request to the copy of the state."""
    shop = Shop(tmp_path / "home")
    states: Any = shop.api.replica
    states.states["t/u2"].since_ms = T0_MS + 1_000
    forgotten(shop, "u1", T0_MS + 500)  # between the events that the copy of the state knows
    forgotten(shop, "u2", T0_MS + 999)
    forgotten(shop, "stranger", T0_MS - 1)
    await ask_everything(shop, "u1")
    assert shop.logged() == []
    for user in ("u2", "stranger"):
        await ask_everything(shop, user)
        assert {one.user_id for one in shop.logged()} == {user}
