"""Users to scores: one call of the encoder for several users of a tenant. What personalize emits and what the read API
answers both come from here."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import NamedTuple

from schemas.outputs import Complements, RecommendedItem, output_id
from stream.core.ranking import scenarios
from stream.core.ranking.index import ItemIndex
from stream.core.ranking.recommend import REASONS_MAX, Rules, Scores, explain, score
from stream.core.user.featurize import Float32, Sequence, batch, sequence
from stream.core.user.state import UserState
from stream.outbox import utc
from stream.ports import Runner
from stream.serving import Serving
from stream.settings import Personalize


def rules_of(own: Personalize) -> Rules:
    """What may be recommended, as the settings have it: for the worker, the read API and whoever judges them."""
    return Rules(top_n=own.recommend_top_n, category_cap=own.category_cap, exclude=own.exclude, diversity=own.diversity)


class Scored(NamedTuple):
    """One user against all items of the tenant."""

    state: UserState
    known: Sequence  # the events that the encoder saw
    weights: Float32 | None  # (L,) of those events; None without a model
    vector: Float32 | None  # (D,) of the user, zeros when nothing is known of them
    scores: Scores

    def explained(
        self, rows: list[int], index: ItemIndex, most: int = REASONS_MAX
    ) -> tuple[RecommendedItem, ...]:  # fmt: skip
        """Chosen rows with the events that speak for each, at most so many."""
        return explain(rows, self.scores, self.known, self.weights, index, most)


async def encoded(
    serving: Serving, index: ItemIndex, sequences: list[Sequence], now_ms: list[int], run: Runner
) -> tuple[Float32 | None, Float32 | None]:
    """User vectors (B, D) and event weights (B, L), each as of its own time; nothing without a model or items."""
    if serving.models is None or not len(index):
        return None, None
    arrays = batch(sequences, index, now_ms, serving.events_max)
    vectors, weights = await run(serving.models.encode, arrays)
    vectors[~arrays["mask"].any(axis=1)] = 0  # nothing known of this user: the model has no say
    return vectors, weights


async def score_users(serving: Serving, tenant: str, states: Seq[UserState], now_ms: list[int], run: Runner) -> list[Scored]:
    """Scores of several users, each as of its own time."""
    index, states = serving.index(tenant), list(states)
    sequences = [sequence(state, at, serving.events_max) for state, at in zip(states, now_ms, strict=True)]
    vectors, weights = await encoded(serving, index, sequences, now_ms, run)
    scored = score(vectors, states, sequences, index, serving.blend, now_ms)
    return [
        Scored(state, known, None if weights is None else weights[at], None if vectors is None else vectors[at], scores)
        for at, (state, known, scores) in enumerate(zip(states, sequences, scored, strict=True))
    ]


def with_basket(serving: Serving, tenant: str, user: str, state: UserState, rules: Rules) -> Complements | None:
    """What goes with the basket that `state.put_event_id` put something into; None when nothing does, or it is empty again.
    The id stands for that event, so that one event is not answered by two of a release, whenever the answer is due."""
    basket = scenarios.basket(state)
    items = scenarios.beside(basket, state, serving.index(tenant), rules) if basket else ()
    if not items:
        return None
    return Complements(
        recommendation_id=output_id("complements", tenant, state.put_event_id, serving.version), tenant=tenant, user_id=user,
        basket=tuple(basket), items=items, as_of_event_id=state.put_event_id, as_of_ts=utc(state.last_ts_ms),
        model_version=serving.version,
    )  # fmt: skip


def degraded(index: ItemIndex, serving: Serving, known: Sequence, explained: bool) -> str | None:
    """The strongest shortcut that was taken, or None."""
    if not len(index):
        return "no_items"
    if serving.models is None:
        return "counts_only"
    if not known.item_ids:
        return "no_history"
    return None if explained else "explanations"
