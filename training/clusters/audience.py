"""What a release says of everybody, for `stream.core.segments.audience`: clusters of users by their vectors, and quantiles.

Users are encoded by the exported bundle as a worker does, as of their last event, and divided by training.clusters.division.
A name is of the words of the items that its users touch, weighted by class-based TF-IDF (Grootendorst, "BERTopic", 2022, eq.
2).

Each training learns another space of vectors, so centroids of two releases cannot be compared; their members can. The
present users are placed by the previous bundle too: the new division goes on from there, and the assignment with the largest
overlap (Kuhn 1955, by Jaccard) hands ids and names on.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from schemas.catalog import Item
from stream.adapters.models.onnx import Bundle
from stream.core.ranking.index import ItemIndex
from stream.core.segments import audience as core
from stream.core.segments.audience import POPULATIONS, STEPS, Audience, Cluster
from stream.core.segments.segment_fields import FIELDS, values_of
from stream.core.survival import churn
from stream.core.survival.churn import ChurnPolicy
from stream.core.user.featurize import Float32, batch, churn_features, sequence
from stream.core.user.state import DAY_MS, UserState
from training.clusters.division import Ints, divide
from training.history.snapshot import History, Snapshot
from training.recommend.offline import index_of
from training.text.texts import Texts

TOUCHES_MIN = 3  # of a user from whom clusters are learned; others are placed in them
USERS_MAX = 20_000  # to learn from, drawn
ENCODED_MAX = 256  # users in one call
TERMS = 8
NAME_TERMS = 2
MEDOIDS = 5
OVERLAP_MIN = 0.25  # of the way from the Jaccard that chance gives to 1: below it a cluster is another one
NAME_CHARS_MAX = 48

_WORD = re.compile(r"[^\W\d_]{3,}|[\u3400-\u9fff]{2,}")
_CJK = re.compile(r"[\u3400-\u9fff]+")


@dataclass(frozen=True)
class Placed:
    """Users in the space of a bundle."""

    users: list[str]
    states: list[UserState]
    vectors: Float32  # (U, D), length 1


def discover(
    bundle: Bundle, snapshot: Snapshot, history: History, texts: Texts, policy: ChurnPolicy,
    previous: Bundle | None = None, seed: int = 0,
) -> Audience:  # fmt: skip
    """Clusters and quantiles of a history's users, as of its end. `previous`: whose clusters, ids and names go on."""
    states = {user: state for user, state in snapshot.states.items() if state.events and not state.claims}
    quantiles = quantiles_of(list(states.values()), history.to_ms, bundle, policy)
    index = index_of(bundle, history.items, texts, snapshot.counts)
    learned = learners(bundle, index, states, seed)
    before, old = np.full(len(learned.users), -1), () if previous is None else previous.audience.clusters
    if previous is not None and old and previous.manifest.text_space == texts.space:
        before = assigned(previous, index_of(previous, history.items, texts, snapshot.counts), learned.states)
    found = divide(learned.vectors, before, seed)
    if found is None:
        return Audience(users=len(states), quantiles=quantiles)
    labels, centroids = found.labels, found.centroids
    terms = terms_of(learned.states, labels, len(centroids), history.items)
    clusters = named(labels, centroids, terms, medoids(learned.states, labels, centroids, index),
                     matched(labels, before, old), old)  # fmt: skip
    return Audience(users=len(states), clusters=clusters, quantiles=quantiles, measured=found.measured)


def learners(bundle: Bundle, index: ItemIndex, states: dict[str, UserState], seed: int) -> Placed:
    """USERS_MAX of the users with TOUCHES_MIN touches, as of their last event, by the bundle and features of serving;
    without those of whose items none is known."""
    users = [user for user, state in states.items() if len(state.history()) >= TOUCHES_MIN]
    if len(users) > USERS_MAX:
        chosen = np.sort(np.random.default_rng(seed).choice(len(users), USERS_MAX, replace=False))
        users = [users[at] for at in chosen]
    held = [states[user] for user in users]
    vectors = vectors_at(bundle, index, held, [state.last_ts_ms for state in held])
    some = np.flatnonzero(vectors.any(axis=1)).tolist()
    return Placed([users[at] for at in some], [held[at] for at in some], vectors[some])


def vectors_at(bundle: Bundle, index: ItemIndex, states: Sequence[UserState], now_ms: Sequence[int]) -> Float32:
    """(U, D) of length 1, each state as of its own time."""
    most = bundle.manifest.events_max
    found = np.zeros((len(states), bundle.manifest.dim), dtype=np.float32)
    for start in range(0, len(states), ENCODED_MAX):
        at_ms = list(now_ms[start : start + ENCODED_MAX])
        some = [sequence(state, at, most) for state, at in zip(states[start : start + ENCODED_MAX], at_ms, strict=True)]
        arrays = batch(some, index, at_ms, most)
        users, _ = bundle.encode(arrays)
        users[~arrays["mask"].any(axis=1)] = 0
        found[start : start + ENCODED_MAX] = users
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    unit: Float32 = np.divide(found, lengths, out=np.zeros_like(found), where=lengths > 1e-9)
    return unit


def assigned(bundle: Bundle, index: ItemIndex, states: Sequence[UserState]) -> Ints:
    """(U,) the cluster of each state by a bundle's centroids, as a worker decides it; -1 for who has no vector."""
    centroids = bundle.audience.centroids()
    vectors = vectors_at(bundle, index, states, [state.last_ts_ms for state in states])
    near = core.similarities(vectors, centroids)
    rows, ends_ms = core.unsure(states, near)
    then = core.similarities(vectors_at(bundle, index, [states[row] for row in rows], ends_ms), centroids)
    return np.where(vectors.any(axis=1), core.settled(near, rows, then), -1)


def words_of(item: Item) -> list[str]:
    """Words of an item's title and category; Chinese in pairs of characters.

    >>> words_of(Item(item_id="1", tenant="t", title="The Red mugs", category="Kitchen > Tableware"))
    ['red', 'mugs', 'kitchen', 'tableware']
    >>> words_of(Item(item_id="1", tenant="t", title="红色杯子"))
    ['红色', '色杯', '杯子']
    """
    found = []
    for word in _WORD.findall(f"{item.title or ''} {item.category or ''}".lower()):
        if _CJK.fullmatch(word):
            found += [word[at : at + 2] for at in range(len(word) - 1)]
        elif word not in ENGLISH_STOP_WORDS:
            found.append(word)
    return found


def terms_of(states: Sequence[UserState], labels: Ints, k: int, items: dict[str, Item]) -> list[list[str]]:
    """The TERMS most telling words of each cluster: tf of the cluster × log(1 + words a cluster / tf of all). A user says a
    word of one item once, however often they touch it."""
    classes = [Counter[str]() for _ in range(k)]
    for state, label in zip(states, labels.tolist(), strict=True):
        for item_id in sorted({touch.item_id for touch in state.history()}):
            if item_id in items:
                classes[label].update(set(words_of(items[item_id])))
    everywhere = sum(classes, Counter[str]())
    mean = sum(everywhere.values()) / max(1, k)
    found = []
    for one in classes:
        total = max(1, sum(one.values()))
        weight = {word: count / total * math.log(1 + mean / everywhere[word]) for word, count in one.items()}
        found.append(sorted(weight, key=lambda word: (-weight[word], word))[:TERMS])
    return found


def medoids(states: Sequence[UserState], labels: Ints, centroids: Float32, index: ItemIndex) -> list[list[str]]:
    """Of the items that a cluster's users touched, the MEDOIDS nearest to its centroid."""
    touched: list[set[str]] = [set() for _ in centroids]
    for state, label in zip(states, labels.tolist(), strict=True):
        touched[label].update(touch.item_id for touch in state.history())
    found = []
    for centroid, some in zip(centroids, touched, strict=True):
        ids = sorted(item for item in some if item in index.row_of)
        near = index.matrix[index.rows(ids)] @ centroid if ids else np.zeros(0)
        found.append([ids[at] for at in np.argsort(-near, kind="stable")[:MEDOIDS]])
    return found


def matched(labels: Ints, before: Ints, old: Sequence[Cluster]) -> dict[int, Cluster]:
    """New cluster → the old one that holds the same users, each at most once: the one-to-one matching with the largest sum
    of Jaccard overlaps, of labels (U,) now and before; -1: in none. Two halves that have nothing to do with each other
    overlap by a third: what counts is how much more than chance it is."""
    k = int(labels.max()) + 1
    both = np.zeros((k, len(old)))
    some = before >= 0
    np.add.at(both, (labels[some], before[some]), 1)
    now, then = np.bincount(labels, minlength=k)[:, None], np.bincount(before[some], minlength=len(old))
    by_chance = np.bincount(labels[some], minlength=k)[:, None] * then / max(1, int(some.sum()))
    overlap, chance = (one / np.maximum(now + then - one, 1) for one in (both, by_chance))  # (K, K before)
    pairs = zip(*linear_sum_assignment(overlap, maximize=True), strict=True)
    enough = overlap - chance >= OVERLAP_MIN * (1 - chance) - 1e-9
    return {int(new): old[int(was)] for new, was in pairs if enough[new, was] and both[new, was]}


def named(
    labels: Ints, centroids: Float32, terms: Sequence[Sequence[str]], items: Sequence[Sequence[str]],
    before: dict[int, Cluster], old: Iterable[Cluster],
) -> tuple[Cluster, ...]:  # fmt: skip
    """Clusters with ids and names: handed on, or new; no id or name is given to two, nor again to another than before."""
    old = list(old)
    taken = {one.name for one in old}
    number = max((int(one.id[1:]) for one in old), default=0)
    found = []
    for at in np.argsort(-np.bincount(labels, minlength=len(centroids)), kind="stable").tolist():
        if at in before:
            id_, name = before[at].id, before[at].name
        else:
            number += 1
            id_, name = f"c{number}", _new_name(terms[at], taken, number)
            taken.add(name)
        found.append(Cluster(id=id_, name=name, terms=tuple(terms[at]), users=int((labels == at).sum()),
                             items=tuple(items[at]), centroid=tuple(centroids[at].tolist())))  # fmt: skip
    return tuple(found)


def _new_name(terms: Sequence[str], taken: set[str], number: int) -> str:
    """The first words that say something new; a longer name where others have the same."""
    chosen: list[str] = []
    for word in terms:
        if not any(word.startswith(one[:4]) or one.startswith(word[:4]) for one in chosen):
            chosen.append(word)
        name = " ".join(chosen)
        if len(chosen) >= NAME_TERMS and name not in taken and len(name) <= NAME_CHARS_MAX:
            return name
    return f"group {number}"


def quantiles_of(
    states: Sequence[UserState], now_ms: int, bundle: Bundle, policy: ChurnPolicy
) -> dict[str, dict[str, tuple[float, ...]]]:
    """Of everybody and of buyers, each field that is a number, exact (linear between two users), as of `now_ms`."""
    silences = np.array([max(0.0, (now_ms - state.last_ts_ms) / DAY_MS) for state in states])
    curves = bundle.survival(np.stack([churn_features(state) for state in states]))
    chances = churn.p_after(curves, silences, policy)
    rows = [values_of(state, now_ms, float(p)) for state, p in zip(states, chances, strict=True)]
    fields = [name for name, kind in FIELDS.items() if kind == "number"]
    table = np.array([[float(row[name]) for name in fields] for row in rows])  # (U, F)
    whose = {"everybody": np.ones(len(rows), dtype=bool), "buyers": np.array([row["orders"] > 0 for row in rows])}  # type: ignore[operator]
    assert set(whose) == set(POPULATIONS.values())
    grid = np.linspace(0, 1, STEPS + 1)
    return {
        population: {name: tuple(np.quantile(table[some, at], grid).tolist()) for at, name in enumerate(fields)}
        for population, some in whose.items() if some.any()
    }  # fmt: skip


def with_file(files: dict[str, bytes], audience: Audience) -> dict[str, bytes]:
    """A bundle's files and what it says of everybody."""
    return files | {"audience.json": msgspec.json.format(core.to_bytes(audience), indent=1)}
