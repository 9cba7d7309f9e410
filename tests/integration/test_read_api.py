"""The read API on a real broker beside the personalize worker: what it answers, how soon it knows, that it says what it
knows when the workers are gone, and that it answers what the worker would say."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from clickwake import topics as topic_admin
from schemas import topics
from schemas.outputs import Decision
from stream.adapters.database import clickhouse
from stream.core.survival.repurchase import FEATURES, Repurchase
from stream.settings import Settings
from tests.support import bundles
from tests.support.bundles import Exported
from tests.support.cluster import Worker, lag, produce_events, read_all, running, until
from tests.support.fakes import DAY_MS, event
from training.release import release as releases

KEY = ("demo-read-key", "")
OTHER_KEYS = {"CLICKWAKE_COLLECTOR__WRITE_KEYS": '{"t": "a-write-key"}',
              "CLICKWAKE_COLLECTOR__ADMIN_KEYS": '{"t": "an-admin-key"}'}  # fmt: skip


@contextmanager
def api_of(settings: Settings, home: Path, **extra: str) -> Iterator[tuple[httpx.Client, Worker]]:
    """A running API with read keys for tenant `t`, once it is ready."""
    env = {"CLICKWAKE_API__PORT": "0", "CLICKWAKE_API__READ_KEYS": '{"t": "demo-read-key"}'} | extra
    with running(settings, "workers.api", home, **env) as worker:
        run_file = home / "run" / "api.json"
        until(run_file.exists, 60, "the API listens")
        url = f"http://127.0.0.1:{json.loads(run_file.read_text())['port']}"
        with httpx.Client(base_url=url, auth=KEY, timeout=10, trust_env=False) as client:
            until(lambda: client.get("/health/ready").status_code == 200, 60, "the API is ready")
            yield client, worker


@pytest.fixture
def shop(settings: Settings, exported: Exported) -> Settings:
    topic_admin.create(settings)
    bundles.put_vectors(settings)
    again = Repurchase(weights=(0.0,) * len(FEATURES), constant=-2.0, shape=1.0, usual_days=10.0).named()
    released = bundles.publish(settings.registry, exported, links=bundles.BESIDE, repurchase=again)
    releases.release(settings, released.model_version)
    return settings


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def test_it_answers_what_the_workers_know(shop: Settings, tmp_path: Path) -> None:
    before = [*(event(user="u3", item=item, id=f"b{days}", ts_ms=now_ms() - days * DAY_MS, name="Order Completed",
                      lane="import") for days, item in ((210, "i0"), (200, "i4"))),
              event(user="u3", name="Products Searched", id="b0", ts_ms=now_ms() - 6_000, properties={"query": "gift"}),
              event(user="u1", item="i1", id="m1", ts_ms=now_ms() - 5_000),
              event(user="u1", item="i2", id="m2", ts_ms=now_ms() - 4_000, name="Product Added"),
              event(user="u2", item="i2", id="m3", ts_ms=now_ms() - 3_000),
              event(user="u2", item="i3", id="m4", ts_ms=now_ms() - 2_000, name="Order Completed")]  # fmt: skip
    produce_events(shop, before)
    with running(shop, "workers.personalize"):
        until(lambda: lag(shop, "personalize", topics.EVENTS) == 0, 60, "the first events folded")
        with api_of(shop, tmp_path / "api", **OTHER_KEYS) as (client, _):
            _recommends_as_the_worker_does(shop, client)
            _scenarios_filters_and_boosts(client)
            _users_items_and_reasons(client)
            _experiments(client, tmp_path / "api" / "experiments.yml")
            _refusals(client)
            began = time.monotonic()
            produce_events(shop, [event(user="new", item="i5", id="n1", ts_ms=now_ms())])
            until(lambda: client.get("/v1/users/new").status_code == 200, 10, "a first event is known")
            print(f"known {time.monotonic() - began:.2f} s after it was sent")
            assert client.get("/v1/recommendations/new").json()["as_of_event_id"] == "n1"
            _advertising_is_refused(shop, client, tmp_path / "api" / "offers.yml")
            logged = until(lambda: read_all(shop, topics.DECISIONS), 20, "decisions are logged")
    decisions = _answers(logged)
    assert len({one.recommendation_id for one in decisions}) == len(decisions), "each answer is logged once"
    assert {dict(record.headers)["ce_type"] for record in logged} == {b"clickwake.decision.v1"}
    assert {one.arm for one in decisions if one.experiment == "which first"} == {"one", "two"}
    assert [one.request for one in decisions if one.scenario == "rank"] == [{"boost": "1"}]
    now = datetime.now(UTC).isoformat()
    shown = [event(user=one.user_id, item=None, id=f"shown-{one.recommendation_id}", name="Product List Viewed",
                   timestamp=now, properties={"recommendation_id": one.recommendation_id})
             for one in decisions if one.experiment]  # fmt: skip
    clicked = [one | {"messageId": "c" + one["messageId"], "event": "Product Clicked"} for one in shown[:3]]
    produce_events(shop, [*shown, *clicked])
    with running(shop, "workers.sink"):
        until(lambda: _stored(shop) == len(_answers(read_all(shop, topics.DECISIONS))), 60, "decisions are stored")
        assert _applied(shop) == _stored(shop), "each with what it was made by and the chance of each place"
        people = len({one.user_id for one in decisions if one.experiment})
        until(lambda: _people(shop)[0] == people, 60, "who saw an arm is counted once")
    _, clicks, low, rate, high = _people(shop)
    assert clicks == len({one["userId"] for one in clicked}) and 0 <= low <= rate <= high <= 1


def _answers(logged: list[Any]) -> list[Decision]:
    """Those that are about items; an offer asked for twice in a minute is one decision."""
    return [one for record in logged if (one := msgspec.json.decode(record.value, type=Decision)).offer is None]


def _advertising_is_refused(settings: Settings, client: httpx.Client, file: Path) -> None:
    """By one who is known, and by one who refuses to be."""
    file.write_text("{placements: [{name: home, control: plain}, {name: bare}], offers: [{id: plain, placements: [home]}, "
                    "{id: summer, placements: [home, bare]}]}")  # fmt: skip

    def offered(user: str, placement: str = "home") -> dict[str, Any]:
        return client.get(f"/v1/offers/{user}", params={"placement": placement}).json()

    until(lambda: offered("new").get("candidates", {}).keys() == {"plain", "summer"}, 10, "the file of offers is taken")
    assert client.get("/v1/users/new").json()["ads"] is None
    began, at_ms = time.monotonic(), now_ms()
    produce_events(settings, [
        event(user="new", name="Products Searched", id="n4", ts_ms=at_ms, properties={"query": "gift"}),
        event(user="new", item="i5", id="n2", ts_ms=at_ms, context={"consent": {"ads": False}}),
        event(user="unknown", id="n3", ts_ms=at_ms, context={"consent": {"ads": False, "personalization": False}})])
    for user in ("new", "unknown"):
        until(lambda user=user: offered(user)["refused"] == {"summer": "refused: ads consent"}, 10, "it is obeyed")  # type: ignore[misc]
    print(f"refusal of advertising obeyed {time.monotonic() - began:.2f} s after the event was sent")
    for user, events, searched in (("new", 3, ["gift"]), ("unknown", 0, [])):
        assert offered(user)["offer"]["offer_id"] == "plain" and offered(user, "bare")["offer"] is None
        known = client.get(f"/v1/users/{user}").json()
        assert known["ads"] | {"stated_at": ""} == {"refused": True, "assumed": False, "stated_at": ""}
        assert [one["text"] for one in known["activity"]] == searched
        assert known["events"] == events and (known["first_seen"] is None) == (events == 0)
        assert (client.get(f"/v1/recommendations/{user}").json()["as_of_ts"] is None) == (events == 0)


def _people(settings: Settings) -> tuple[float, ...]:
    """Users, clickers, and the widest of the arms' sequences, summed over arms."""
    with closing(clickhouse.open_client(settings.clickhouse)) as client:
        return tuple(client.query("SELECT sum(users), sum(clicked), min(click_low), avg(click_rate), max(click_high) "
                                  "FROM experiment_results").first_row)  # fmt: skip


def _applied(settings: Settings) -> int:
    with closing(clickhouse.open_client(settings.clickhouse)) as client:
        return int(client.query("SELECT countIf(JSONExtractUInt(applied, 'n') >= length(item_ids) AND "
                                "length(propensities) = length(item_ids)) FROM decisions_served").first_row[0])  # fmt: skip


def _stored(settings: Settings) -> int | None:
    try:
        with closing(clickhouse.open_client(settings.clickhouse)) as client:
            return int(client.query("SELECT count() FROM decision_outcomes").first_row[0])
    except clickhouse.ClickHouseError as error:
        if "UNKNOWN" in str(error):
            return None
        raise


def _recommends_as_the_worker_does(settings: Settings, client: httpx.Client) -> None:
    answered = client.get("/v1/recommendations/u1", params={"fields": "title,price"})
    assert answered.status_code == 200, answered.text
    answer = answered.json()
    said = [json.loads(r.value) for r in read_all(settings, topics.RECOMMENDATIONS) if r.key == b"t/u1"][-1]
    if said["as_of_event_id"] == answer["as_of_event_id"]:  # else the worker's interval is not over
        assert {one["item_id"] for one in answer["items"]} == {one["item_id"] for one in said["items"]}
    assert answer["as_of_event_id"] == "m2" and answer["degraded"] is None and 0 <= answer["stale_ms"] < 5_000
    assert answer["items"][0]["item"]["title"].startswith("thing") and answer["items"][0]["reasons"]
    again = client.get("/v1/recommendations/u1", params={"fields": "title,price"},
                       headers={"If-None-Match": answered.headers["etag"]})  # fmt: skip
    assert again.status_code == 304 and not again.content
    many = client.post("/v1/recommendations", json={"users": ["u1", "u2", "nobody"], "n": 3}).json()["recommendations"]
    assert [one["user_id"] for one in many] == ["u1", "u2", "nobody"]
    assert [one["degraded"] for one in many] == [None, None, "no_history"] and all(len(one["items"]) == 3 for one in many)


def _scenarios_filters_and_boosts(client: httpx.Client) -> None:
    def ask(user: str = "u1", **params: object) -> list[str]:
        answer = client.get(f"/v1/recommendations/{user}", params={name: str(value) for name, value in params.items()})
        assert answer.status_code == 200, answer.text
        return [one["item_id"] for one in answer.json()["items"]]

    categories = {f"i{n}": f"c{n % 4}" for n in range(12)}
    only = ask(filter="category == 'c1'", category_cap=10)
    assert only and {categories[item] for item in only} == {"c1"}
    assert len(ask(filter="category in ['c1', 'c2']", n=2)) == 2 and ask(filter="False") == []
    assert ask(boost="1 if item_id == 'i7' else 0")[0] == "i7"
    assert "i1" not in ask(exclude="seen", n=12) and "i1" in ask(exclude="none", n=12, category_cap=12)
    assert ask("u2", scenario="again") == ["i3"], "the only thing that was bought"
    assert "i1" not in ask(scenario="similar", items="i1") and ask(scenario="similar", items="i1")
    assert ask(scenario="complements", items="i2") == ["i3", "i4"], "what is bought with it, the most often first"
    assert ask("u2", scenario="complements", items="i2") == ["i4"], "who has bought i3 is not told of it"
    assert ask(scenario="complements") == ["i3", "i4"], "asked about nothing, it is about the cart"
    assert ask(scenario="complements", items="i8,i9") == ["i10", "i11"], "what goes with both comes first"
    assert set(ask(scenario="popular", n=3)) == {"i1", "i2", "i3"}, "what was touched comes before what was not"
    assert set(ask(scenario="trending")) <= {"i1", "i2", "i3"}
    due = client.get("/v1/recommendations/u3", params={"scenario": "due_categories"}).json()
    assert [one["category"] for one in due["categories"]] == ["c0"], "two of it were bought, each once, 10 days apart"
    assert {one["item_id"] for one in due["items"]} == {"i0", "i4", "i8"}
    assert ask("u3", scenario="due_categories", exclude="bought") == ["i8"]


def _users_items_and_reasons(client: httpx.Client) -> None:
    user = client.get("/v1/users/u1").json()
    assert (user["events"], user["orders"], user["cart"]) == (2, 0, ["i2"])
    assert [(one["item_id"], one["did"]) for one in user["history"]] == [("i2", "cart"), ("i1", "view")]
    curve = [chance for _, chance in user["churn"]["curve"]]
    assert curve[0] == 1.0 and curve == sorted(curve, reverse=True) and 0 <= user["churn"]["p_no_return"] <= 1
    near = client.get("/v1/items/i1/neighbors", params={"n": 3}).json()["items"]
    assert len(near) == 3 and "i1" not in {one["item_id"] for one in near}
    to_rank = {"user_id": "u1", "items": ["i9", "i1", "zzz", "i9"], "boost": "1"}
    ranked = client.post("/v1/rank", json=to_rank).json()
    assert sorted(one["item_id"] for one in ranked["items"]) == ["i1", "i9"] and ranked["unknown"] == ["zzz"]
    shown = client.get("/v1/recommendations/u1").json()["items"][0]["item_id"]
    why = client.get(f"/v1/why/u1/{shown}").json()
    assert why["shown"] and why["place"] == 1 and why["removed_by"] == [] and abs(sum(why["shares"].values()) - 1) < 0.01
    bought = client.get("/v1/why/u2/i3").json()
    assert not bought["shown"] and bought["place"] is None and bought["removed_by"] == ["the user bought it"]


def _experiments(client: httpx.Client, path: Path) -> None:
    path.write_text("""
experiments:
  - name: which first
    arms: [{name: one, boost: 1 if item_id == 'i1' else 0}, {name: two, boost: 1 if item_id == 'i2' else 0}]
""")
    until(lambda: client.get("/v1/recommendations/u1").json()["experiment"] == "which first", 10, "the file is taken over")
    seen = {}
    for number in range(12):
        answer = client.get(f"/v1/recommendations/someone{number}").json()
        seen[answer["arm"]] = answer["items"][0]["item_id"]
    assert seen == {"one": "i1", "two": "i2"}
    own = client.get("/v1/recommendations/someone1", params={"boost": "1 if item_id == 'i3' else 0"}).json()
    assert own["items"][0]["item_id"] == "i3", "what a request says itself comes first"
    assert client.get("/v1/recommendations/u1", params={"scenario": "popular"}).json()["experiment"] == ""
    path.unlink()
    until(lambda: client.get("/v1/recommendations/u1").json()["experiment"] == "", 10, "it ends with the file")


def _refusals(client: httpx.Client) -> None:
    def refused(path: str, status: int, code: str, where: str = "") -> None:
        answer = client.get(path)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (status, code), answer.text
        assert not where or error["messages"][0]["path"] == where

    refused("/v1/users/nobody", 404, "unknown_user")
    refused("/v1/items/zzz/neighbors", 404, "unknown_item")
    refused("/v1/why/u1/zzz", 404, "unknown_item")
    refused("/v1/recommendations/u1?n=0", 400, "invalid_request", "n")
    refused("/v1/recommendations/u1?n=1000", 400, "invalid_request", "n")
    refused("/v1/recommendations/u1?scenario=magic", 400, "invalid_request", "scenario")
    refused("/v1/recommendations/u1?colour=red", 400, "invalid_request", "colour")
    refused("/v1/recommendations/u1?filter=color%20%3D%3D%201", 400, "invalid_request", "filter")
    refused("/v1/recommendations/u1?scenario=similar", 400, "invalid_request", "items")
    for key in ("wrong", "a-write-key", "an-admin-key"):
        for path in ("/v1/users/u1", "/v1/recommendations/u1", "/v1/why/u1/i1"):
            assert client.get(path, auth=(key, "")).status_code == 401, (key, path)
    assert client.get("/v1/users/u1", auth=None).status_code == 401
    assert client.post("/v1/rank", content=b"{").status_code == 400
    assert client.get("/openapi.json").json()["openapi"] == "3.1.0" and "Read key" not in client.get("/docs").text[:100]


def test_it_goes_on_from_its_store_and_forgets_who_is_erased(shop: Settings, tmp_path: Path) -> None:
    produce_events(shop, [event(user="u1", item="i1", id="m1", ts_ms=now_ms()),
                          event(user="u2", item="i2", id="m2", ts_ms=now_ms())])  # fmt: skip
    home = tmp_path / "api"
    with running(shop, "workers.personalize"):
        until(lambda: lag(shop, "personalize", topics.EVENTS) == 0, 60, "folded")
        with api_of(shop, home) as (client, _):
            assert client.get("/v1/users/u1").status_code == 200
        refused = {"context": {"consent": {"personalization": False}}}
        withdrawn = event(user="u1", item="i1", id="m3", ts_ms=now_ms()) | refused
        produce_events(shop, [withdrawn, event(user="u2", item="i3", id="m4", ts_ms=now_ms())])
        until(lambda: lag(shop, "personalize", topics.EVENTS) == 0, 60, "the withdrawal folded")
    with api_of(shop, home) as (client, worker):  # nobody else runs now
        assert client.get("/v1/users/u1").status_code == 404
        assert client.get("/v1/users/u2").json()["events"] == 2
        assert client.get("/v1/recommendations/u1").json()["degraded"] == "no_history"
        assert "records=" in worker.log()
