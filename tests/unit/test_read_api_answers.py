"""What every answer of the read API says, what is logged of it, and that it is what the description says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import httpx
import msgspec
import numpy as np
import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from schemas.outputs import Applied, Decision
from stream.adapters.kafka import decisions
from stream.api.service import REASONED_MAX
from stream.settings import Api as ApiSettings
from stream.settings import Collector
from tests.support.read_api import HISTORIES, ITEMS, KEY, KEY_OF_TWO, STALE_MS, FakeReplica, Shop, folded, served

EXPLORES = """
experiments:
  - name: new things
    arms: [{name: explores, explore: 0.5, filter: price < 9, category_cap: 5}]
"""
REQUESTS: dict[tuple[str, str], tuple[str, Any]] = {  # of every route that needs a read key, one that is answered
    ("GET", "/v1/recommendations/{user}"): ("/v1/recommendations/u1?fields=title,price", None),
    ("POST", "/v1/recommendations"): ("/v1/recommendations", {"users": ["u1", "u1"], "n": 3}),
    ("POST", "/v1/rank"): ("/v1/rank", {"user_id": "u1", "items": ["i9", "i1", "zzz", "i9"]}),
    ("GET", "/v1/offers/{user}"): ("/v1/offers/u1?placement=home&id=page", None),
    ("POST", "/v1/offers"): ("/v1/offers", {"user_id": "u1", "placement": "home", "id": "page"}),
    ("GET", "/v1/users/{user}"): ("/v1/users/u1", None),
    ("GET", "/v1/users/{user}/nearest"): ("/v1/users/u1/nearest?n=3&fields=title", None),
    ("GET", "/v1/items/{item}/neighbors"): ("/v1/items/i1/neighbors?n=3&fields=title", None),
    ("GET", "/v1/why/{user}/{item}"): ("/v1/why/u1/i1?fields=title", None),
}
IDS = [f"{method} {path}" for method, path in REQUESTS]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "home")


async def answers(shop: Shop, method: str, route: str) -> list[dict[str, Any]]:
    path, body = REQUESTS[method, route]
    answer = await shop.ask(method, path, json=body)
    assert answer.status_code == 200, answer.text
    said = answer.json()
    found: list[dict[str, Any]] = said["recommendations"] if set(said) == {"recommendations"} else [said]
    return found


def mounted(shop: Shop) -> set[tuple[str, str]]:
    return {(method, route.path) for route in shop.app.routes for method in route.methods - {"HEAD"}}


def test_there_is_a_request_for_every_route(shop: Shop) -> None:
    assert {one for one in mounted(shop) if one[1].startswith("/v1/")} == set(REQUESTS)


@pytest.mark.parametrize(("method", "route"), list(REQUESTS), ids=IDS)
async def test_every_answer_says_how_fresh_it_is_and_what_made_it(shop: Shop, method: str, route: str) -> None:
    for said in await answers(shop, method, route):
        assert (said["stale_ms"], said["model_version"]) == (STALE_MS, "fake-1")
        of_nobody = "neighbors" in route
        assert said["as_of_event_id"] == ("" if of_nobody else "m2")
        assert said["as_of_ts"] == (None if of_nobody else "2025-06-15T15:06:41Z")


async def test_a_tenants_key_reads_nothing_of_another_by_any_route(tmp_path: Path) -> None:
    """The other has a user and items of the same ids, and is answered the same where the first is not there at all."""
    shared, alone = Shop(tmp_path / "shared"), Shop(tmp_path / "alone")
    for shop in (shared, alone):
        serving, replica = shop.api.ranking.serving.current, cast(FakeReplica, shop.api.replica)
        replica.states["two/u1"] = folded(HISTORIES["u2"])
        own = [msgspec.structs.replace(one, tenant="two", title="ours") for one in ITEMS[:4]]
        serving.put_items(list(zip(own, np.eye(4, dtype=np.float32), strict=True)))
        if shop is alone:
            del serving.indexes["t"]
            replica.states = {name: state for name, state in replica.states.items() if name.startswith("two/")}
    for method, route in sorted(one for one in mounted(shared) if one[1].startswith("/v1/")):
        path, body = REQUESTS[method, route]
        beside, by_itself = [await shop.ask(method, path, json=body, auth=KEY_OF_TWO) for shop in (shared, alone)]
        assert beside.status_code == 200 and beside.text == by_itself.text, route
        assert beside.text != (await shared.ask(method, path, json=body)).text, "the first is answered something else"
    assert [one.tenant for one in shared.logged()] == ["two", "t"] * 4


@pytest.mark.parametrize("own", [ApiSettings, Collector])
def test_a_tenant_is_not_named_so_that_another_has_its_users(own: type[ApiSettings | Collector]) -> None:
    """`shop` asking about `eu/u1` would read, and write, what is `shop/eu`'s."""
    name = "read_keys" if own is ApiSettings else "write_keys"
    with pytest.raises(ValidationError, match=rf"{name}\.shop/eu"):
        own.model_validate({name: {"shop": "one", "shop/eu": "two"}})


@pytest.mark.parametrize("ident", ["12/AB", "x/nearest", "50%2F", "why?now#then", "/", "tea & Käse"])
@pytest.mark.parametrize("route", [route for _, route in REQUESTS if "{" in route])
async def test_an_id_in_a_path_may_hold_anything(shop: Shop, route: str, ident: str) -> None:
    shop.also_known_as(ident)
    path = route.format(user=quote(ident, safe=""), item=quote(ident, safe=""))
    answer = await shop.get(path, params={"placement": "home"} if "offers" in route else {})
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert {said[name] for name in ("user_id", "item_id") if said.get(name)} <= {ident}
    assert said["as_of_event_id"] == ("" if "neighbors" in route else "m2")


async def test_an_id_in_a_path_may_hold_anything_through_the_server_that_we_run(shop: Shop) -> None:
    shop.also_known_as("12/A%?")
    async with served(shop.app) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", auth=KEY,
                                                           trust_env=False) as client:  # fmt: skip
        why = await client.get("/v1/why/12%2FA%25%3F/12%2FA%25%3F")
        twins = [await client.get(path) for path in ("/v1/users/12/A%25%3F", "/v1/users/u1", "/v1/users/u1/")]
    assert (why.status_code, why.json()["user_id"], why.json()["item_id"]) == (200, "12/A%?", "12/A%?")
    assert [one.status_code for one in twins] == [404, 200, 307], "what is not quoted is another path"


async def test_each_id_that_is_answered_is_logged_once_and_no_other(shop: Shop) -> None:
    answered: list[str] = []
    for _ in range(2):
        for method, route in REQUESTS:
            said = await answers(shop, method, route)
            answered += [one["recommendation_id"] for one in said if "recommendation_id" in one]
    logged = [one.recommendation_id for one in shop.logged()]
    assert sorted(logged) == sorted(set(answered)) and len(logged) == 4, "for you twice, a ranking, an offer"


async def test_what_nobody_is_shown_is_answered_alike_and_not_logged(tmp_path: Path) -> None:
    tried = 0
    for at, ((method, route), (path, body)) in enumerate(REQUESTS.items()):
        shop = Shop(tmp_path / str(at))
        shown = await answers(shop, method, route)
        if not shop.logged():
            continue
        looked_at = await (shop.post(path, body | {"log": False}) if body else shop.get(f"{path}&log=false"))
        assert looked_at.status_code == 200, looked_at.text
        assert looked_at.json() in (shown[0], {"recommendations": shown}) and shop.logged() == [], route
        tried += 1
    assert tried == 5, "recommendations, a ranking and an offer, by both ways"


async def test_a_ranking_is_a_decision_that_can_be_attributed(shop: Shop) -> None:
    said = (await shop.post("/v1/rank", {"user_id": "u1", "items": ["i9", "i1", "zzz"], "boost": "price"})).json()
    other = (await shop.post("/v1/rank", {"user_id": "u1", "items": ["i9", "i1"], "boost": "-price"})).json()
    one, _ = shop.logged()
    assert one.recommendation_id == said["recommendation_id"] != other["recommendation_id"]
    assert (one.scenario, one.candidates, one.request, one.user_id) == ("rank", 2, {"boost": "price"}, "u1")
    assert one.applied == Applied(n=2, exclude="none", boost="price") and one.propensities == (1.0, 1.0)
    assert [item.item_id for item in one.items] == [item["item_id"] for item in said["items"]] == ["i1", "i9"]
    assert said["unknown"] == ["zzz"] and said["degraded"] is None


async def test_a_long_ranking_is_logged_whole_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop(tmp_path / "home")
    for n in range(12, 200):
        shop.index.row(f"i{n}")
    said = (await shop.post("/v1/rank", {"user_id": "u1", "items": [f"i{n}" for n in range(200)]})).json()
    (one,) = shop.logged()
    assert [item.item_id for item in one.items] == [item["item_id"] for item in said["items"]]
    assert all(not item.reasons for item in one.items[REASONED_MAX:]) and any(item.reasons for item in one.items)
    shop = Shop(tmp_path / "home")
    monkeypatch.setattr(decisions, "QUEUE_BYTES_MAX", 5_000)
    for n in range(12):
        assert (await shop.get(f"/v1/recommendations/v{n}")).status_code == 200, "answering never waits for the log"
    assert 0 < len(shop.logged()) < 12 and shop.api.decisions.lost > 0


async def test_a_decision_says_by_what_it_was_made_and_with_which_chance(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "home", EXPLORES)
    for n in range(20):
        await shop.get(f"/v1/recommendations/v{n}", params={"n": 4, "boost": "1 + price"})
    await shop.get("/v1/recommendations/u1", params={"scenario": "popular", "exclude": "seen"})
    *explored, popular = shop.logged()
    assert {one.arm for one in explored} == {"explores"} and popular.arm == ""
    by = Applied(n=4, exclude="bought", category_cap=5, filter="price < 9", boost="1 + price", explore=0.5)
    for one in explored:
        assert one.applied == by
        assert one.request == {"n": "4", "boost": "1 + price"}, "as it was asked"
        assert len(one.propensities) == len(one.items) == 4 and all(0 < chance < 1 for chance in one.propensities)
        if one.items[0].source == "explore":
            assert one.propensities[0] == 0.5, "the likest cold one is at the first place whenever that is drawn"
    assert popular.applied == Applied(n=10, exclude="seen", category_cap=3)
    assert popular.propensities == (1.0,) * len(popular.items)


async def test_the_request_the_arm_and_the_settings_say_how_much_is_explored(tmp_path: Path) -> None:
    async def shares(shop: Shop, **asked: str) -> set[float]:
        for n in range(8):
            assert (await shop.get(f"/v1/recommendations/v{n}", params={"n": "4", **asked})).status_code == 200
        logged = shop.logged()
        assert len(logged) == 8
        put_in = any(item.source == "explore" for one in logged for item in one.items)
        shares = {one.applied.explore for one in logged if one.applied is not None}
        assert put_in == any(share > 0.2 for share in shares) or 0.125 in shares
        return shares

    plain = Shop(tmp_path / "plain")
    assert await shares(plain) == {0.0}
    assert await shares(plain, explore="0.5") == {0.5}
    plain.api.settings = plain.api.service.settings = plain.api.settings.model_copy(
        update={"api": plain.api.settings.api.model_copy(update={"explore": 0.125})})  # fmt: skip
    assert await shares(plain) == {0.125}
    assert await shares(plain, scenario="popular") == {0.0}, "what is popular is not scored for anybody"
    in_arms = Shop(tmp_path / "arms", EXPLORES)
    assert await shares(in_arms) == {0.5} and await shares(in_arms, explore="0") == {0.0}


def test_decisions_of_before_are_read() -> None:
    record = {"recommendation_id": "r", "tenant": "t", "user_id": "u", "scenario": "for_you", "items": [], "candidates": 0,
              "as_of_event_id": "", "as_of_ts": None, "served_at": "2026-01-01T00:00:00Z", "model_version": "v"}  # fmt: skip
    one = msgspec.convert(record, Decision)
    assert one.applied is None and one.propensities == ()


@pytest.mark.parametrize(("method", "route"), list(REQUESTS), ids=IDS)
async def test_an_unknown_parameter_is_refused_with_those_there_are(shop: Shop, method: str, route: str) -> None:
    path, body = REQUESTS[method, route]
    more = "&" if "?" in path else "?"
    answer = await shop.ask(method, f"{path}{more}filtre=price<3", json=body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["messages"][0]["path"] == "filtre", error
    given = set(httpx.URL(path).params)
    assert "no parameter 'filtre'" in error["message"] and all(name in error["message"] for name in given or {"none"})
    assert shop.logged() == []


@pytest.mark.parametrize(("method", "route"), [one for one in REQUESTS if one[0] == "POST"])
async def test_a_body_with_an_unknown_field_is_refused_with_those_there_are(shop: Shop, method: str, route: str) -> None:
    path, body = REQUESTS[method, route]
    answer = await shop.post(path, body | {"filters": "price < 3"})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["messages"][0]["path"] == "filters", error
    assert "no field 'filters'" in error["message"] and all(name in error["message"] for name in body)
    assert shop.logged() == []
    for raw in (b"[]", b"{", b"3", b'{"users": 3, "user_id": 3}', b"\xff"):
        refused = await shop.ask("POST", path, content=raw)
        assert refused.status_code == 400, raw


async def test_the_nearest_to_a_users_vector_are_those_of_the_greatest_cosine(shop: Shop) -> None:
    said = (await shop.get("/v1/users/u1/nearest", params={"n": 4, "fields": "title"})).json()
    user = shop.index.matrix[[1, 2]].mean(axis=0)  # of what u1 dealt with, as the fake encoder has it
    cosines = shop.index.matrix @ user / np.linalg.norm(user)
    best = sorted(range(10), key=lambda row: -cosines[row])[:4]  # i10 is out of stock, i11 blocked
    assert [(one["item_id"], one["item"]) for one in said["items"]] == [(f"i{n}", {"title": f"thing {n}"}) for n in best]
    assert [one["score"] for one in said["items"]] == pytest.approx([float(cosines[row]) for row in best], abs=1e-5)
    nobody = (await shop.get("/v1/users/nobody/nearest")).json()
    assert (nobody["items"], nobody["degraded"]) == ([], "no_history")
    shop.api.ranking.serving.current.models = None
    assert (await shop.get("/v1/users/u1/nearest")).json()["degraded"] == "counts_only"
    assert (await shop.get("/v1/users/u1/nearest?n=100000")).status_code == 400 and shop.logged() == []


TAGGED = ["/v1/recommendations/u1?n=3", "/v1/items/i1/neighbors?n=3", "/v1/users/u1", "/v1/users/u1/nearest?n=3",
          "/v1/why/u1/i4?n=3"]


@pytest.mark.parametrize("path", TAGGED)
async def test_what_has_not_changed_is_not_sent_again(shop: Shop, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await shop.get(path)
    tag = first.headers["etag"]
    monkeypatch.setattr(shop.api.replica, "behind_ms", lambda: 99_000)
    again = await shop.get(path, headers={"If-None-Match": f'"other", {tag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag), "however old it is"
    as_of = first.json()["as_of_ts"]
    assert (as_of is None) == ("neighbors" in path)
    for answer, stale_ms in ((first, STALE_MS), (again, 99_000)):
        assert answer.headers["clickwake-stale-ms"] == str(stale_ms), "which a 304 has no body to say"
        assert answer.headers.get("clickwake-as-of") == as_of
    other = await shop.get(path.replace("u1", "u2").replace("i1/n", "i2/n"), headers={"If-None-Match": tag})
    assert other.status_code == 200 and other.headers["etag"] != tag
    assert first.headers["cache-control"] == "private, no-cache"


async def test_every_route_parameter_and_field_is_described(shop: Shop) -> None:
    document = (await shop.get("/openapi.json")).json()
    described = {(method.upper(), path) for path, calls in document["paths"].items() for method in calls}
    assert described == mounted(shop)
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
        if "properties" in schema:
            schema["additionalProperties"] = False  # a field that is not described is an error here
    for (method, route), (path, body) in REQUESTS.items():
        call = document["paths"][route][method.lower()]
        said = (await shop.ask(method, path, json=body)).json()
        schema = call["responses"]["200"]["content"]["application/json"]["schema"]
        validator = Draft202012Validator(schema | {"components": document["components"]})
        assert not (errors := [one.message for one in validator.iter_errors(said)]), (route, errors)
        told = {name.lower() for name in call["responses"]["200"].get("headers", ())}
        sent = {name for name in (await shop.ask(method, path, json=body)).headers if name.startswith("clickwake-")}
        assert sent <= told and ("304" in call["responses"]) == bool(sent)
        in_path = {one["name"] for one in call.get("parameters", ()) if one["in"] == "path"}
        assert in_path == set(re.findall(r"{(\w+)}", route))
        assert all(one["description"] for one in call.get("parameters", ()))
        if method == "POST":
            await _takes_just(shop, path, document, call)
        else:
            there_are = await shop.get(path.split("?")[0], params={"colour": "red"})
            assert _named(there_are) == {one["name"] for one in call["parameters"] if one["in"] == "query"}


async def _takes_just(shop: Shop, path: str, document: dict[str, Any], call: dict[str, Any]) -> None:
    """The fields that a body may have are those that are described."""
    ref = call["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    fields = document["components"]["schemas"][ref.rsplit("/", 1)[1]]["properties"]
    assert _named(await shop.post(path, {"colour": "red"})) == set(fields)


def _named(refused: httpx.Response) -> set[str]:
    """What there is, as the refusal of what there is not names it."""
    message = refused.json()["error"]["message"]
    assert refused.status_code == 400 and "'colour'; there are " in message
    return set(message.split("there are ")[1].rstrip(".").split(", ")) - {"none"}


@pytest.mark.parametrize("kind", ["new", ""])
async def test_what_explores_leaves_pinned_items_their_place_and_keeps_the_cap(tmp_path: Path, kind: str) -> None:
    items = [msgspec.structs.replace(one, category=kind if at > 5 else "old", pinned=at == 3)
             for at, one in enumerate(ITEMS)]  # fmt: skip
    shop = Shop(tmp_path / "home", items=items)
    sources: set[str] = set()
    for user in range(20):
        said = await shop.get(f"/v1/recommendations/v{user}", params={"n": 5, "category_cap": 2, "explore": 0.5})
        shown = [(one["item_id"], one["source"]) for one in said.json()["items"]]
        assert shown[0] == ("i3", "pinned") and len(shown) == 5
        assert not kind or sum(int(item[1:]) > 5 for item, _ in shown) == 2, "two of a kind, whatever was drawn"
        sources |= {source for _, source in shown}
    assert "explore" in sources
    assert {one.propensities[0] for one in shop.logged()} == {1.0}
