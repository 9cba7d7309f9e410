"""Campaigns in a planted world, each with subject lines of its own: what it is worth to know how near they are to a user,
and what it costs where that tells nothing. With the policy and the ledger's counts as they are served, without servers."""

from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import pytest

from schemas.offers import PlacementTotals
from stream.core.offers.nearness import nearness, steps, taste
from stream.core.offers.offer_ledger import Learned
from stream.core.offers.offer_policy import expand, policy, text_about
from stream.core.statistics.bandit import choose
from stream.core.user.state import Kind, Touch

TOPICS, DIM, USERS, CAMPAIGNS, WORLDS = 3, 64, 60, 12, 4
PAYS, ELSE = 0.3, 0.1  # of those who see a text that suits them, or does not, so many click


class World(NamedTuple):
    """Users' likings; and for each campaign the vectors of its texts, one a topic, and how many click each (K, topics)."""

    liked: list[Any]
    topic: list[int]
    texts: list[Any]
    clicks: list[Any]


def world(seed: int, *, suits: bool) -> World:
    """Cosines as of a real encoder: 0.3 to 0.5 within a topic, around 0 between two. `suits`: who likes a topic clicks its
    texts; else one text of each campaign is the best one for everybody."""
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.normal(size=(DIM, TOPICS)))[0].T  # (topics, DIM)

    def drawn(topic: int) -> Any:
        one = 0.65 * centres[topic] + 0.75 * rng.normal(size=DIM) / DIM**0.5
        return (one / np.linalg.norm(one)).astype(np.float32)

    topic = [n % TOPICS for n in range(USERS)]
    items = {f"{one}-{n}": drawn(one) for one in range(TOPICS) for n in range(6)}
    liked = [taste([Touch(at, f"e{at}", f"{one}-{rng.integers(6)}", Kind.VIEW, 0.0) for at in range(3)], items.get)
             for one in topic]  # fmt: skip
    texts = [np.stack([drawn(one) for one in range(TOPICS)]) for _ in range(CAMPAIGNS)]
    same = np.full((TOPICS, TOPICS), ELSE) + (PAYS - ELSE) * np.eye(TOPICS)
    return World(liked, topic, texts, [same if suits else same[rng.integers(TOPICS)][:, None].repeat(TOPICS, 1)
                                       for _ in range(CAMPAIGNS)])  # fmt: skip


def clicked(of: World, seed: int, *, near: bool) -> float:
    """The share of mails that are clicked, learning after each fifth of a campaign."""
    learned, clicks = Learned(PlacementTotals()), 0
    for number, (texts, rates) in enumerate(zip(of.texts, of.clicks, strict=True)):
        abouts = [text_about(f"{number} {k}", texts[k], "space") for k in range(TOPICS)]
        for part in range(5):
            propensities = cache(partial(policy(learned.totals()).propensities, values=(1.0,) * TOPICS, groups=()))
            for user in range(part, USERS, 5):
                above = nearness(texts, of.liked[user])
                about = tuple(one + (steps(float(above[k])) if near else ()) for k, one in enumerate(abouts))
                k = choose(propensities(about), f"{seed} {number} {user}").chosen
                reward = np.random.default_rng([seed, number, user]).random() < rates[k, of.topic[user]]
                rows = learned.rows(expand(about[k], ()))
                learned.gram[np.ix_(rows, rows)] += 1
                learned.moment[rows] += int(reward)
                learned.outcomes, learned.rewards = learned.outcomes + 1, learned.rewards + int(reward)
                clicks += int(reward)
    return clicks / (USERS * CAMPAIGNS)


@pytest.mark.parametrize("suits", [True, False])
def test_nearness_pays_where_it_tells_something_and_costs_little_where_it_does_not(suits: bool) -> None:
    found = np.array([[clicked(world(seed, suits=suits), seed, near=near) for near in (False, True)]
                      for seed in range(WORLDS)])  # fmt: skip
    gained = found[:, 1] - found[:, 0]
    print(f"suits {suits}: clicked without and with nearness {found.mean(axis=0).round(3)}, "
          f"gained {gained.mean():.3f} ± {1.96 * gained.std(ddof=1) / WORLDS**0.5:.3f}")  # fmt: skip
    if suits:
        assert gained.min() > 0.03, "at the start of a campaign it is all that is known"
    else:
        assert gained.mean() > -0.03
