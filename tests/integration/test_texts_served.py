"""Subject lines and a caption on a real broker and engine with the real text encoder, and a planted truth: some users looked
at what one cooks with, others at what one gardens with. Before anybody has clicked anything each gets mostly what is near to
that; when all click the caption, which is near to nobody, the policy turns to it; and SQL says who saw what, and what came
of it."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import numpy as np
import pytest

from clickwake import topics as topic_admin
from schemas import topics
from schemas.catalog import Item
from schemas.events import key
from schemas.offers import PlacementTotals
from schemas.outputs import Decision
from stream.adapters.database import clickhouse
from stream.adapters.models import model_store
from stream.api.texts import TextFeatures
from stream.core.offers.offer_policy import policy, text_id
from stream.core.user.state import UserState
from stream.serving import ServingState
from stream.settings import Settings
from tests.support import bundles
from tests.support.bundles import Exported
from tests.support.cluster import Sender, Tail, outcomes, produce_events, read_all, running, stored_states, until
from tests.support.fakes import DAY_MS, T0_MS, event
from tests.support.offering import all_learned, api, published, recomputed
from training.release import release as releases

FILE = """
holdout: 0.1
placements: [{name: mail, groups: {buyer: orders > 0}}]
"""
TITLES = {
    "cook": ["Cast iron frying pan", "Chef's knife, 20 cm", "Stainless steel saucepan with lid", "Bamboo chopping board",
             "Cake tin, non-stick", "Set of mixing bowls"],
    "grow": ["Steel spade with ash handle", "Pruning shears", "Tomato seeds, 50 pieces", "Watering can, 10 litres",
             "Potting compost, peat-free", "Climbing rose, bare root"],
}  # fmt: skip
CATEGORIES = {"cook": "Cooking", "grow": "Gardening"}
OWN = {"cook": "Dinner tonight? New things for your kitchen", "grow": "What to plant and prune this month"}
CAPTION = "Two friends laughing on a park bench"  # of a picture
TEXTS = [CAPTION, *OWN.values()]
EACH, ROUNDS = 30, 5  # users of a kind; mails to each
NOBODY = "stranger"


class Mail(NamedTuple):
    """One that was sent."""

    user: str
    number: int
    answer: Mapping[str, Any]

    @property
    def text(self) -> str:
        return str(self.answer["offer"]["text"])

    @property
    def clicked(self) -> bool:
        """The truth: half of those who see the caption click it, whoever they are; a twentieth of the others. By hash."""
        digest = hashlib.blake2b(f"{self.user} {self.number} {self.text}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64 < (0.5 if self.text == CAPTION else 0.05)


def kind(user: str) -> str:
    return user.split("-", maxsplit=1)[0]


USERS = [f"{what}-{n}" for what in TITLES for n in range(EACH)]


def known(settings: Settings, exported: Exported) -> None:
    """What everybody looked at, folded; the items, encoded; and a release in their space: by the workers that do it."""
    items = [Item(item_id=f"{what}-{n}", tenant="t", title=title, category=CATEGORIES[what])
             for what in TITLES for n, title in enumerate(TITLES[what])]  # fmt: skip
    looks = [event(user=user, item=f"{kind(user)}-{(n * 5 + look) % 6}", ts_ms=T0_MS + look * DAY_MS, id=f"{user} {look}")
             for n, user in enumerate(USERS) for look in range(3)]  # fmt: skip
    with Sender(settings, topics.ITEMS) as sender:
        sender.send([(f"t/{one.item_id}".encode(), msgspec.json.encode(one)) for one in items])
    produce_events(settings, looks)
    space = model_store.newest_text_space(settings.registry)
    assert space is not None
    wanted = {f"{space}/t/{one.item_id}".encode() for one in items}
    with (running(settings, "workers.catalog"), running(settings, "workers.personalize") as folding,
          Tail(settings, topics.ITEM_VECTORS) as vectors):  # fmt: skip
        until(lambda: {one.key for one in vectors.poll()} >= wanted, 60, "the items are encoded")
        until(lambda: outcomes(folding)["folded"] == len(looks), 60, "all is folded")
    assert sum(one.events for one in stored_states(settings).values()) == len(looks)
    releases.release(settings, bundles.publish(settings.registry, exported, space=space).model_version)


def a_mail(client: httpx.Client, user: str, number: int) -> Mail:
    body = {"user_id": user, "placement": "mail", "id": f"mail {number}", "texts": TEXTS}
    answer = client.post("/v1/offers", json=body)
    assert answer.status_code == 200, answer.text
    return Mail(user, number, answer.json())


def said(mails: list[Mail]) -> list[dict[str, Any]]:
    """What their readers do."""
    return [event(user=one.user, id=f"{name} {one.user} {one.number}", name=name, item=None,
                  properties={"recommendation_id": one.answer["recommendation_id"]})
            for one in mails for name in ("Promotion Viewed", *(["Promotion Clicked"] if one.clicked else []))]  # fmt: skip


def chances(mails: list[Mail], what: str, text: str) -> float:
    """Of a text, for users of a kind who are not held out, on average."""
    return float(np.mean([one.answer["candidates"][text_id(text)] for one in mails
                          if kind(one.user) == what and not one.answer["holdout"]]))  # fmt: skip


def taken(mails: list[Mail], what: str, text: str) -> float:
    return float(np.mean([one.text == text for one in mails if kind(one.user) == what and not one.answer["holdout"]]))


def test_each_gets_what_is_near_until_clicks_say_otherwise(settings: Settings, registry: Path, exported: Exported) -> None:
    settings = bundles.with_registry(settings, registry)
    topic_admin.create(settings)
    known(settings, exported)
    sent: list[list[Mail]] = []
    with api(settings, FILE) as client, Sender(settings) as events, running(settings, "workers.offers"):
        stranger = a_mail(client, NOBODY, 0)
        for number in range(ROUNDS):
            sent.append([a_mail(client, user, number) for user in USERS])
            events.send(said(sent[-1]))
            totals = until(partial(all_learned, settings, (number + 1) * len(USERS), "mail"), 60, "everything is learned")
            version = policy(totals).version
            until(lambda: a_mail(client, NOBODY, 1).answer["policy_version"] == version, 20, "the API knows it")  # noqa: B023
        once, again = ([a_mail(client, user, ROUNDS).answer["recommendation_id"] for user in USERS[:3]] for _ in range(2))
        assert once == again, "the same moment has the same decision"
    for what, own in OWN.items():
        other = next(text for text in OWN.values() if text != own)
        first = [chances(sent[0], what, text) for text in (own, other, CAPTION)]
        print(f"{what}: own, other's, caption at first {np.round(first, 2)}, then {chances(sent[-1], what, CAPTION):.2f}")
        assert first[0] > 0.5 and first[0] > 2 * max(first[1:]) and taken(sent[0], what, own) > 0.5
        assert chances(sent[-1], what, CAPTION) > 0.6 and taken(sent[-1], what, CAPTION) > 0.6
    assert published(settings, "mail") == recomputed(settings, "mail"), "what was learned is the log recomputed, to the bit"
    _logged_as_served(settings, {(one.user, one.number): one for one in (stranger, *sent[0])})
    _in_sql(settings, [one for some in sent for one in some])


def _logged_as_served(settings: Settings, mails: Mapping[tuple[str, int], Mail]) -> None:
    """The chances of the first mails follow from what was on the topics, and the log has the features they followed from."""
    serving = ServingState()
    for record in read_all(settings, topics.ITEM_VECTORS):
        serving.on_vector(record.key, record.value)
    texts, states = TextFeatures(settings, serving), stored_states(settings)
    untaught = policy(PlacementTotals())

    async def features(user: str) -> list[tuple[str, ...]]:
        return await texts.about(TEXTS, "t", states.get(key("t", user), UserState()).history())

    checked = 0
    for record in read_all(settings, topics.DECISIONS):
        decision = msgspec.json.decode(record.value, type=Decision)
        offered = decision.offer
        mail = mails.get((decision.user_id, int(decision.request["id"].split()[1])))
        if mail is None or offered is None:
            continue
        about = asyncio.run(features(decision.user_id))
        assert offered.about == about[TEXTS.index(mail.text)] and offered.candidates == mail.answer["candidates"]
        assert any(name.startswith("near=") for name in sum(about, ())) == (decision.user_id != NOBODY)
        if not offered.holdout:
            found = untaught.propensities(about, [1.0] * len(TEXTS), offered.groups).tolist()
            assert dict(zip(map(text_id, TEXTS), found, strict=True)) == pytest.approx(offered.candidates, abs=1e-12)
            checked += 1
    assert checked > EACH


def _in_sql(settings: Settings, mails: list[Mail]) -> None:
    wanted = Counter((one.user, one.text, one.clicked) for one in mails)
    seen = sorted({(user, text, wanted[user, text, False] + wanted[user, text, True], wanted[user, text, True])
                   for user, text, _ in wanted})  # fmt: skip
    clickhouse.migrate(settings.clickhouse, wait_s=10)
    with running(settings, "workers.sink"), closing(clickhouse.open_client(settings.clickhouse)) as client:
        def stored() -> bool:
            (found,) = client.query("SELECT sum(impressions) FROM offer_exposure").first_row
            return bool(found == len(mails))

        until(stored, 60, "everything is stored")
        found = client.query("SELECT user_id, text, impressions, clicks FROM offer_exposure WHERE placement = 'mail'")
        assert sorted(tuple(row) for row in found.result_rows) == seen, "who saw what, how often, and clicked it how often"
        (*_, second, best) = client.query(
            "SELECT text, click_rate FROM offer_results WHERE NOT holdout ORDER BY click_rate").result_rows
        assert best[0] == CAPTION and best[1] > 0.3 > second[1]
        steps = client.query("SELECT arrayCount(one -> startsWith(one, 'near='), about) AS steps, count() AS seen, "
                             "countIf(isNotNull(clicked_at)) AS clicked FROM offer_outcomes WHERE isNotNull(seen_at) "
                             "GROUP BY steps ORDER BY steps").result_rows  # fmt: skip
        print("steps of nearness, seen, clicked:", steps)
        assert steps[0][2] / steps[0][1] > 2 * steps[-1][2] / steps[-1][1], "what is near to nobody is clicked most"
