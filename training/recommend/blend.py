"""The mixture fitted: shares of the parts and boosts of the items, by the likelihood of what users touched next.

Users are asked at several times of the validation window, each time with everything as it was then: states, live counts,
and links learned anew from what came before; only the user encoder is older, learned before the window. Some are asked at
that time whatever their silence, as a mail would; others just before their next moment, as a page would.
Per question the loss is the listwise cross-entropy (Cao et al., "Learning to rank: from pairwise to listwise", 2007) of its
items among all, plus NEW_WEIGHT of that among items new to the user. Candidates: what was touched, the best by equal shares,
and a random part of the others, weighted for the whole.
Online Retail, one validation split, NDCG@10 all / new: weights of a linear blend found by coordinate search .34 / .11, a
linear ranker of the same parts .337 / .119, a small MLP of 35 features .355 / .153, this mixture .352 / .150: chosen because
it splits exactly by part and event, and needs no other model to run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stream.adapters.models.onnx import Bundle
from stream.core.ranking.blend import BOOST_LOG_MAX, GATES, ITEM_FEATURES, PARTS, USER_FEATURES, Blend
from stream.core.ranking.index import ItemIndex
from stream.core.ranking.recommend import user_features
from stream.core.user.featurize import Float32
from training.history.snapshot import History, Replay, interactions
from training.recommend import links
from training.recommend.asking import Columns, Question, next_of, walk
from training.recommend.offline import ask, follow, index_of
from training.text.texts import Texts

TIMES = 6  # at which users are asked
QUESTIONS_MAX = 500  # of each of the two kinds at each time
BEST_MAX = 300  # candidates by equal shares
RANDOM_MAX = 200
TARGETS_MAX = 128  # of one question
CANDIDATES_MAX = BEST_MAX + TARGETS_MAX + RANDOM_MAX
NEW_WEIGHT = 0.2
SCORE_MIN = 1e-9  # of a candidate that no part speaks for
NOT_ASKED = -1e9
EPOCHS = 30
STEPS_MIN = 500  # with few questions an epoch is a few steps only
BATCH = 64
LEARNING_RATE = 0.02
RIDGE = 1e-3  # on all weights but the constants
STD_MIN = 0.05  # of a feature: one that hardly varies in the window must not get a weight that explodes when it does
QUESTIONS_MIN = 20  # with fewer the blend keeps its defaults

EQUAL = Blend(np.zeros((len(PARTS), 1 + len(USER_FEATURES)), np.float32), np.zeros((2, 1 + len(ITEM_FEATURES)), np.float32))


class Examples(NamedTuple):
    """Questions as arrays; C candidates each, those beyond a question's own have weight 0."""

    parts: Float32  # (Q, C, K) p_k of each candidate
    user: Float32  # (Q, U)
    item: Float32  # (Q, C, I)
    known: npt.NDArray[np.bool_]  # (Q, C) dealt with before
    weight: Float32  # (Q, C) how many items the candidate stands for
    wanted: npt.NDArray[np.bool_]  # (Q, C)

    def take(self, at: npt.NDArray[np.int64]) -> Examples:
        return Examples(self.parts[at], self.user[at], self.item[at], self.known[at], self.weight[at], self.wanted[at])


def examples(
    bundle: Bundle, history: History, texts: Texts, from_ms: int, end_ms: int, seed: int, say: Callable[[str], None]
) -> Examples | None:
    """Questions between the two times; None when there are too few."""
    replay, columns = Replay(history), Columns(history)
    rng = np.random.default_rng(seed)
    found: list[Examples] = []
    times = np.linspace(from_ms, end_ms, TIMES + 1).astype(np.int64).tolist()
    for number, (at, until) in enumerate(pairwise(times), 1):
        say(f"what links, counts and encoder said then: {number} of {TIMES}")
        replay.advance(at)
        past, _ = interactions(history, at)
        index = index_of(bundle, history.items, texts, replay.snapshot.counts, links.fit(past, list(history.items), at))
        horizon_ms = min(end_ms, at + 3 * (until - at))

        def questions(at: int = at, until: int = until, horizon_ms: int = horizon_ms) -> Iterator[Question]:
            yield from next_of(replay, columns, at, horizon_ms, QUESTIONS_MAX, seed)
            yield from walk(replay, columns, at, until, QUESTIONS_MAX, seed)

        for question in questions():
            counts = replay.snapshot.counts
            follow(index, {key: counts.counts[key] for key in counts.dirty})
            counts.dirty.clear()
            found.append(_example(bundle, index, question, columns, rng))
    if len(found) < QUESTIONS_MIN:
        return None
    return Examples(*(np.stack(column) for column in zip(*found, strict=True)))


def _example(bundle: Bundle, index: ItemIndex, question: Question, columns: Columns, rng: np.random.Generator) -> Examples:
    (scores,) = ask(bundle, index, [question.state], [question.now_ms], EQUAL)
    wanted, left_out = question.wanted[:TARGETS_MAX], question.wanted[TARGETS_MAX:]
    allowed = columns.known(question.now_ms)  # (N,)
    allowed[left_out] = False
    order = np.where(allowed, scores.total[: len(allowed)], -1.0)
    order[wanted] = np.inf  # always among the candidates
    most = min(len(order), BEST_MAX + len(wanted))
    best = np.argpartition(-order, most - 1)[:most]
    best = best[order[best] >= 0]
    rest = allowed.copy()
    rest[best] = False
    others = np.flatnonzero(rest)
    drawn = rng.choice(others, min(RANDOM_MAX, len(others)), replace=False)
    rows = np.concatenate([best, drawn])
    weight = np.r_[np.ones(len(best)), np.full(len(drawn), len(others) / max(1, len(drawn)))].astype(np.float32)
    dealt = [index.row_of[item] for item in question.state.items if item in index.row_of]
    columns_of = (
        (scores.by_part(rows.tolist()).T * len(PARTS)).astype(np.float32),  # shares are equal: back to distributions
        index.features(index.popularity(question.now_ms))[rows], np.isin(rows, dealt), weight, np.isin(rows, wanted),
    )  # fmt: skip
    filler = CANDIDATES_MAX - len(rows)
    parts, item, known, weight, hits = (np.pad(one, [(0, filler)] + [(0, 0)] * (one.ndim - 1)) for one in columns_of)
    return Examples(parts, user_features(question.state, question.now_ms), item, known, weight, hits)


class Mixture(torch.nn.Module):
    """The blend on standardised features; `Blend` says what it computes."""

    def __init__(self, data: Examples) -> None:
        super().__init__()
        present = data.weight > 0
        self.user_scale = _scale(data.user)
        self.item_scale = _scale(data.item[present])
        self.shares = torch.nn.Parameter(torch.zeros(len(PARTS), 1 + len(USER_FEATURES)))
        self.boosts = torch.nn.Parameter(torch.zeros(len(GATES), 1 + len(ITEM_FEATURES)))

    def forward(self, parts: Tensor, user: Tensor, item: Tensor, known: Tensor) -> Tensor:
        """Logarithms of the scores (B, C)."""
        user = (user - self.user_scale[0]) / self.user_scale[1]
        item = (item - self.item_scale[0]) / self.item_scale[1]
        shares = torch.softmax(self.shares[:, 0] + user @ self.shares[:, 1:].T, dim=1)  # (B, K)
        logs = self.boosts[:, 0] + item @ self.boosts[:, 1:].T  # (B, C, 2)
        boost = torch.where(known, logs[..., 1], logs[..., 0]).clamp(-BOOST_LOG_MAX, BOOST_LOG_MAX)
        return torch.log((parts * shares[:, None, :]).sum(-1) + SCORE_MIN) + boost

    def blend(self) -> Blend:
        """The same on raw features."""
        return Blend(_raw(self.shares, self.user_scale), _raw(self.boosts, self.item_scale))


def _scale(features: Float32) -> tuple[Tensor, Tensor]:
    flat = features.reshape(-1, features.shape[-1])
    return torch.from_numpy(flat.mean(0)), torch.from_numpy(np.maximum(flat.std(0), np.float32(STD_MIN)))


def _raw(weights: Tensor, scale: tuple[Tensor, Tensor]) -> Float32:
    slopes = weights[:, 1:] / scale[1]
    constants = weights[:, 0] - slopes @ scale[0]
    return np.asarray(torch.cat([constants[:, None], slopes], dim=1).detach().numpy(), dtype=np.float32)


def fit(data: Examples, seed: int, threads: int = 1) -> Blend:
    """The likeliest mixture; deterministic by seed."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = Mixture(data)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    per_epoch = max(1, len(data.user) // BATCH)
    steps = max(STEPS_MIN, EPOCHS * per_epoch)
    for step in range(steps):
        if step % per_epoch == 0:
            order = rng.permutation(len(data.user))
        start = step % per_epoch * BATCH
        batch = data.take(order[start : start + BATCH])
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
        loss = _loss(model, batch) + RIDGE * (model.shares[:, 1:].square().sum() + model.boosts[:, 1:].square().sum())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.blend()


def _loss(model: Mixture, batch: Examples) -> Tensor:
    parts, user, item, known, weight, wanted = (torch.from_numpy(one) for one in batch)
    scores = model(parts, user, item, known) + torch.log(weight.clamp(min=1e-30))  # (B, C); fillers are out
    loss = _cross_entropy(scores, wanted, torch.ones(len(user), dtype=torch.bool))
    new = wanted & ~known
    asked = new.any(1)
    if asked.any():
        loss = loss + NEW_WEIGHT * _cross_entropy(scores.masked_fill(known, NOT_ASKED), new, asked)
    return loss


def _cross_entropy(scores: Tensor, wanted: Tensor, asked: Tensor) -> Tensor:
    """Mean over the asked questions of the mean over what was wanted; a wanted candidate stands for itself alone."""
    logs = torch.log_softmax(scores[asked], dim=1)
    hits = wanted[asked].to(logs.dtype)
    return -((logs * hits).sum(1) / hits.sum(1)).mean()
