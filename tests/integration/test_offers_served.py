"""Offers on a real broker and engine, with a planted truth: of two offers buyers like one, others the other. What is served
learns it, through a worker that is killed and another that takes over; and the log of it judges policies rightly."""

from __future__ import annotations

import hashlib
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from math import log, sqrt
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from clickwake import topics as topic_admin
from schemas import topics
from schemas.erasure import Erasure, subject
from schemas.events import key
from schemas.outputs import Decision, Offered
from stream.adapters.database import clickhouse
from stream.core.offers.offer_policy import policy
from stream.core.offers.offers import OffersFile, compiled, held_out
from stream.core.statistics.confidence import rate
from stream.core.user.state import UserState
from stream.erasure.search import Needles, in_topic
from stream.partition import pack
from stream.settings import Settings
from tests.support.cluster import Sender, Worker, read_all, running, start_worker, until
from tests.support.fakes import event
from tests.support.offering import all_learned, api, published
from training.promotions.off_policy import Log, judge

FILE = """
holdout: 0.1
placements: [{name: home, control: red, groups: {buyer: orders > 0}}]
offers:
  - {id: red, placements: [home], text: Red}
  - {id: blue, placements: [home], text: Blue}
  - {id: late, placements: [home], until: 2020-01-01T00:00:00Z}
  - {id: spent, placements: [home], budget: {impressions: 0}}
"""
BEST = {False: "red", True: "blue"}  # for others, for buyers
RULES = compiled(msgspec.yaml.decode(FILE, type=OffersFile))
USERS, ROUNDS = 100, 9
RHO2 = 0.085**2  # of the views' confidence sequences
NOW = "2026-01-01T00:00:00Z"


def buyer(user: str) -> bool:
    return int(user[1:]) % 2 == 1


def clicks(ident: str, likes: bool) -> bool:
    """The truth: half of those who like what they see click, a tenth of the others. By hash: the same again."""
    drawn = int.from_bytes(hashlib.blake2b(f"click {ident}".encode(), digest_size=8).digest(), "big") / 2**64
    return drawn < (0.5 if likes else 0.1)


def a_round(number: int, client: httpx.Client) -> list[dict[str, Any]]:
    """Everybody looks at the page once; the events of it."""
    done = []
    for user in (f"u{n}" for n in range(USERS)):
        answer = client.get(f"/v1/offers/{user}", params={"placement": "home", "id": f"view {number}"}).json()
        assert answer["refused"].keys() >= {"late", "spent"} and answer["refused"]["spent"] == "impressions spent"
        assert abs(sum(answer["candidates"].values()) - 1) < 1e-9
        ident, offer = answer["recommendation_id"], answer["offer"]["offer_id"]
        assert not answer["holdout"] or (offer == "red" and answer["propensity"] == 1.0)
        said = [("Promotion Viewed", "v")]
        if clicks(f"{user} {number} {offer}", BEST[buyer(user)] == offer):
            said.append(("Promotion Clicked", "c"))
        done += [event(user=user, id=f"{what}{ident}", name=name, timestamp=NOW, properties={"recommendation_id": ident})
                 for name, what in said]  # fmt: skip
    return done


def test_what_is_served_learns_the_truth_and_its_log_judges_policies(settings: Settings) -> None:
    topic_admin.create(settings)
    with Sender(settings, topics.STATE) as states:
        states.send([(key("t", f"u{n}"), pack(UserState(orders=n % 2, events=1, last_event_id="e", last_ts_ms=5)))
                     for n in range(USERS)])  # fmt: skip
    process = start_worker(settings, "workers.offers")
    with api(settings, FILE) as client, Sender(settings) as events:
        assert client.get("/v1/offers/u1", params={"placement": "hom"}).status_code == 404
        assert client.get("/v1/offers/u1", params={"placement": "home", "offers": "pink"}).status_code == 400
        for number in range(ROUNDS):
            events.send(a_round(number, client))
            if number == 2:
                process.kill()  # perhaps in the middle of its turn
                process.wait()
                process = start_worker(settings, "workers.offers")
            if number == 5:
                former, process = process, start_worker(settings, "workers.offers")
                until(lambda: former.poll() is not None or _sends(events), 60, "the former worker ends")  # noqa: B023
                assert former.wait() == 1
            totals = until(partial(all_learned, settings, (number + 1) * USERS), 60, "everything is learned")
            version = policy(totals).version
            until(lambda: _asked(client)["policy_version"] == version, 20, "the API knows it")  # noqa: B023
        assert _asked(client)["recommendation_id"] == _asked(client)["recommendation_id"], "the same decision"
        user = next(user for n in range(USERS) if not held_out(RULES, "t", user := f"u{n}"))
        made = client.post("/v1/offers", json={"user_id": user, "placement": "home", "offers": ["blue"]}).json()
        assert made["offer"]["offer_id"] == "blue" and made["propensity"] == 1.0
    worker = Worker(process, settings.home, "workers.offers")
    assert worker.metrics()["clickwake_offers_users"] == USERS + 1  # and nobody, whose decision may still come
    decisions = {one.recommendation_id: one for record in read_all(settings, topics.DECISIONS)
                 if (one := msgspec.json.decode(record.value, type=Decision)).request.get("id", "").startswith("view")}
    assert len(decisions) == USERS * ROUNDS
    _judge_the_log([one.offer for one in decisions.values() if one.offer and not one.offer.holdout],
                   [(one.user_id, one.request["id"]) for one in decisions.values() if one.offer and not one.offer.holdout])
    _in_sql(settings)
    _forgets_who_is_erased(settings)  # last: the sink too takes nothing more of them
    worker.stop()


def _sends(events: Sender) -> bool:
    """One more event about an offer, so that a worker has something to write; of a user who is nobody's."""
    events.send([event(user="nobody", id="n", name="Promotion Viewed", timestamp=NOW,
                       properties={"recommendation_id": "offer-none"})])  # fmt: skip
    return False


def _asked(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/v1/offers/u0", params={"placement": "home", "id": "probe"}).json()
    return found


def _forgets_who_is_erased(settings: Settings) -> None:
    def found() -> list[str]:
        return [one.place for one in in_topic(settings, topics.OFFERS, Needles("t", ["u1"]))]

    name = topics.OFFERS.name(settings.kafka.topic_prefix)
    assert f"Kafka {name}" in found()
    asked = Erasure(erasure_id="e", tenant="t", requested_at=datetime.now(UTC), user_id="u1")
    with Sender(settings, topics.ERASURES) as erasures:
        erasures.send([(subject(key("t", "u1")), msgspec.json.encode(asked))])
    until(lambda: found() == [f"Kafka {name}, older records"], 30, "nothing is remembered of who is to be forgotten")


def _judge_the_log(log: list[Offered], whose: list[tuple[str, str]]) -> None:
    best = np.array([one.offer_id == BEST[buyer(user)] for one, (user, _) in zip(log, whose, strict=True)])
    number = np.array([int(view.split()[1]) for _, view in whose])
    rewards = np.array([clicks(f"{user} {view.split()[1]} {one.offer_id}", BEST[buyer(user)] == one.offer_id)
                        for one, (user, view) in zip(log, whose, strict=True)], dtype=np.float64)  # fmt: skip
    first, last = best[number == 0].mean(), best[number >= ROUNDS - 3].mean()
    assert abs(first - 0.5) < 0.2 and last > 0.85, (first, last)
    earned = rate(int(rewards.sum()), len(rewards))
    assert earned.low > 0.3, f"it earns more than taking every offer alike, {earned}"
    chances = np.array([[one.candidates["red"], one.candidates["blue"]] for one in log])
    assert np.abs(chances.sum(axis=1) - 1).max() < 1e-9
    actions = np.array([one.offer_id == "blue" for one in log], dtype=np.int64)
    taken = Log(actions, rewards, np.array([one.propensity for one in log]))
    alike = judge(taken, np.full((len(log), 2), 0.5), seed=1).values["SNIPS"]
    target = np.array([[not buyer(user), buyer(user)] for user, _ in whose], dtype=np.float64)
    always = judge(taken, target, seed=1).values["SNIPS"]
    print(f"share of the better offer {first:.2f} then {last:.2f}; earned {earned}; alike {alike}; best {always}")
    assert alike.low <= 0.3 <= alike.high and always.low <= 0.5 <= always.high


def _in_sql(settings: Settings) -> None:
    totals = published(settings)
    wanted = sorted((name, one.impressions, one.clicks) for name, one in totals.offers.items())
    with running(settings, "workers.sink"), closing(_connected(settings)) as client:
        def stored() -> bool:
            (seen,) = client.query("SELECT countIf(isNotNull(seen_at)) FROM offer_outcomes").first_row
            return bool(seen == totals.outcomes)

        until(stored, 60, "everything is stored")
        found = client.query("SELECT offer_id, sum(impressions), sum(clicks) FROM offer_results GROUP BY offer_id")
        assert sorted(tuple(row) for row in found.result_rows) == wanted
        _, n, clicked, low, high = client.query(
            "SELECT offer_id, impressions, clicks, click_low, click_high FROM offer_results WHERE holdout").first_row
        p = (clicked + 1) / (n + 2)
        half = sqrt(p * (1 - p)) * sqrt(2 * (n * RHO2 + 1) / (n * n * RHO2) * log(sqrt(n * RHO2 + 1) / 0.05))
        assert (low, high) == pytest.approx((max(0.0, clicked / n - half), min(1.0, clicked / n + half)))
        effect = client.query("SELECT offered + held_out, held_out, effect_low, effect_high FROM offer_effect").first_row
        assert effect[0] == USERS and 0 < effect[1] < USERS / 3 and effect[2] <= 0 <= effect[3]


def _connected(settings: Settings) -> Any:
    clickhouse.migrate(settings.clickhouse, wait_s=10)
    return clickhouse.open_client(settings.clickhouse)
