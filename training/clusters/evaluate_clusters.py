"""How good discovered clusters are: against planted tastes, under resampling, and whether users stay where they are.

In the simulated shop each shopper has a strongest department and a strongest style at their last event; how well clusters
agree with them is the adjusted Rand index (Hubert & Arabie 1985: 0 by chance, 1 the same), users drawn with replacement.
`stability` clusters users drawn with replacement anew and asks how well all users then agree (Hennig 2007; von Luxburg
2010), at the k of each, and at the k of ours. `staying` asks users again after each of their last moments: the share of
moments after which they are where they were. Nobody is told a truth before; all methods choose k by the same criterion.
`--retrain` asks of the same users where another training puts them: training.clusters.between_trainings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.metrics import adjusted_rand_score

from producers.simulate.truth import Truth
from producers.simulate.world import World
from stream.adapters.models.onnx import Bundle
from stream.core.ranking.index import ItemIndex
from stream.core.segments import audience as core
from stream.core.user.featurize import Float32
from stream.core.user.state import UserState
from training import train
from training.clusters import audience, between_trainings, division
from training.clusters.division import Ints
from training.evaluation import report
from training.evaluation.comparison import Comparison, Measures, iso, merged, statistics, under
from training.evaluation.evaluations import Evaluated, Request
from training.evaluation.metrics import bootstrap, interval
from training.history.snapshot import EmptyHistory, History, from_dataset, from_events
from training.recommend.offline import index_of
from training.text.texts import Texts, encode

SERVED = "clickwake"
SIMULATED = "simulated"
DRAWS = 30  # clusterings of resampled users
RESTARTS_DRAWN = 3  # of each of them
STAYING_USERS_MAX = 200
STAYING_MOMENTS = 20  # the last of each


@dataclass(frozen=True)
class Shop:
    """What is clustered, and what was planted, if anything was."""

    history: History
    texts: Texts
    truth: Truth | None


def run(request: Request) -> Evaluated:
    """`clickwake evaluate clusters`; without a file the simulated shop."""
    return evaluated(shop_of(request), request)


def shop_of(request: Request) -> Shop:
    """The history that was asked for, and what was planted in it."""
    if request.dataset == SIMULATED:
        world = World(seed=int(request.options.get("seed", 7)), shoppers=int(request.options.get("shoppers", 400)))
        history, truth = from_events(world.history(), world.items(), "simulated shop"), world.truth()
    else:
        history, truth = from_dataset(request.dataset, request.path), None
    return Shop(history, encode(request.settings, history.items, request.say), truth)


def evaluated(shop: Shop, request: Request) -> Evaluated:
    """Everything that is measured on one history."""
    settings, say, history = request.settings, request.say, shop.history
    say(f"learning from {len(history.events)} events")
    learned = train.learn(history, shop.texts, settings, budget_s=settings.training.budget_s / 2)
    learned = train.with_audience(learned, history, shop.texts, settings, None)
    bundle, seed = learned.bundle, settings.training.seed
    if not bundle.audience.clusters:
        raise EmptyHistory(f"{history.name}: no clusters of {division.MEMBERS_MIN} users were found; name a longer history")
    index = index_of(bundle, history.items, shop.texts, learned.snapshot.counts)
    unclaimed = {user: state for user, state in learned.snapshot.states.items() if state.events and not state.claims}
    placed = audience.learners(bundle, index, unclaimed, seed)
    users, held, vectors = placed.users, placed.states, placed.vectors
    spaces = {SERVED: vectors} | other_spaces(held, history, shop.texts)
    say(f"clustering {len(users)} users in {len(spaces)} ways")
    labels: dict[str, Ints] = {SERVED: audience.assigned(bundle, index, held)}
    centroids = bundle.audience.centroids()
    labels[f"{SERVED}, nearest alone"] = np.asarray(core.similarities(vectors, centroids).argmax(axis=1))
    for name, space in spaces.items():
        if name != SERVED and (found := division.anew(space, seed)) is not None:
            labels[name] = found.labels
    k = len(centroids)
    models, ahead = [], []
    planted = {} if shop.truth is None else planted_of(shop.truth, users, held)
    for what, (rows, truth) in planted.items():
        at_their_k = {name: one[rows] for name, one in labels.items()}
        given = len(np.unique(truth))
        at_true_k = {name: division.kmeans(space, given, seed)[0][rows] for name, space in spaces.items()}
        for task, predicted in ((what, at_their_k), (f"{what}, k as planted", at_true_k)):
            as_numbers = {name: one.astype(np.float64) for name, one in predicted.items()}
            part, difference = statistics(as_numbers, truth.astype(np.float64), {"ari": _ari}, SERVED)
            models.append(under(task, part))
            ahead.append(under(task, difference))
    say("clustering resampled users")
    ks = {name: len(np.unique(labels[name])) for name in spaces if name in labels}
    for task, wanted in (("stability", ks), ("stability, k of ours", dict.fromkeys(ks, k))):
        part, difference = stability({name: spaces[name] for name in ks}, wanted, seed)
        models.append(under(task, part))
        ahead.append(under(task, difference))
    say("asking users after each of their last moments")
    part, difference = staying(bundle, index, held, seed)
    models.append(under("staying", part))
    ahead.append(under("staying", difference))
    told: dict[str, float] = {}
    if request.options.get("retrain"):
        part, difference, told = between_trainings.compare(learned, history, shop.texts, held, planted, request)
        models.append(part)
        ahead.append(difference)
    comparison = Comparison(
        task="clusters", dataset=history.name, split=iso(history.to_ms), n=len(users), served=SERVED,
        models=merged(*models), ahead=merged(*ahead),
        settings={**{f"k of {name}": float(of) for name, of in ks.items()}, "margin": core.MARGIN, "seed": float(seed),
                  **bundle.audience.measured, **told,
                  **{f"{one.id} {one.name}": f"{one.users} users: {', '.join(one.terms)}; {_titles(one.items, history)}"
                     for one in bundle.audience.clusters}},
    )  # fmt: skip
    return Evaluated(comparison, figures(bundle, vectors, labels[SERVED], planted))


def other_spaces(states: Sequence[UserState], history: History, texts: Texts) -> dict[str, Float32]:
    """Users without a learned encoder: rows (U, …) of length 1, by the items of the same recent touches."""
    ids = list(history.items)
    row = {item: at for at, item in enumerate(ids)}
    counts = np.zeros((len(states), len(ids)), dtype=np.float32)  # (U, N)
    for at, state in enumerate(states):
        for touch in state.history():
            if touch.item_id in row:
                counts[at, row[touch.item_id]] += 1
    categories = _of_items([[item.category] if item.category else [] for item in history.items.values()])
    words = _of_items([audience.words_of(item) for item in history.items.values()])
    found = {"k-means on words, TF-IDF": _unit(TfidfTransformer().fit_transform(counts @ words).toarray()),
             "k-means on mean text vectors": _unit((counts > 0) @ texts.of(ids))}  # fmt: skip
    if categories.shape[1] > 1:
        found = {"k-means on category counts": _unit(counts @ categories),
                 "k-means on categories, TF-IDF": _unit(TfidfTransformer().fit_transform(counts @ categories).toarray()),
                 **found}  # fmt: skip
    return found


def planted_of(truth: Truth, users: Sequence[str], states: Sequence[UserState]) -> dict[str, tuple[Ints, Ints]]:
    """What → rows of the users of whom it is known, and its number for each of them (R,): shared devices have none."""
    rows, departments, styles = [], [], []
    for at, (user, state) in enumerate(zip(users, states, strict=True)):
        owners = truth.owners(user)
        if len(owners) == 1:
            taste = owners[0].tastes[truth.period(owners[0], state.last_ts_ms)]
            rows.append(at)
            departments.append(max(taste.departments, key=lambda name: taste.departments[name]))
            styles.append(max(taste.styles, key=lambda name: taste.styles[name]))
    some = np.array(rows, dtype=np.int64)
    return {"department": (some, np.unique(departments, return_inverse=True)[1]),
            "style": (some, np.unique(styles, return_inverse=True)[1])}  # fmt: skip


def stability(
    spaces: Mapping[str, Float32], ks: Mapping[str, int], seed: int
) -> tuple[dict[str, Measures], dict[str, Measures]]:
    """(models, ahead): agreement of all users between the clusters of everybody and those of users drawn anew."""
    rng = np.random.default_rng(seed)
    size = len(next(iter(spaces.values())))
    draws = [rng.integers(0, size, size) for _ in range(DRAWS)]  # the same for every space
    agreed: dict[str, Float32] = {}
    for name, space in spaces.items():
        whole, _ = division.kmeans(space, ks[name], seed)
        agreed[name] = np.array([
            _ari((space @ division.kmeans(space[draw], ks[name], seed + at, RESTARTS_DRAWN)[1].T).argmax(axis=1), whole)
            for at, draw in enumerate(draws, 1)
        ])  # fmt: skip
    models = {name: {"ari": interval(float(one.mean()), one)} for name, one in agreed.items()}
    ahead = {name: {"ari": interval(float((agreed[SERVED] - one).mean()), agreed[SERVED] - one)}
             for name, one in agreed.items() if name != SERVED}  # fmt: skip
    return models, ahead


def staying(
    bundle: Bundle, index: ItemIndex, states: Sequence[UserState], seed: int
) -> tuple[dict[str, Measures], dict[str, Measures]]:
    """(models, ahead): share of a user's moments after which their cluster was what it was before, beside the nearest alone
    and hysteresis that remembers, which depends on the moments at which it was asked."""
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(states), min(len(states), STAYING_USERS_MAX), replace=False))
    walks = [walk for at in chosen if len(walk := prefixes(states[at])) > 1]
    every = [state for walk in walks for state in walk]
    ours = audience.assigned(bundle, index, every)
    vectors = audience.vectors_at(bundle, index, every, [state.last_ts_ms for state in every])
    near = core.similarities(vectors, bundle.audience.centroids())
    stays: dict[str, list[float]] = {SERVED: [], f"{SERVED}, nearest alone": [], "hysteresis with memory": []}
    start = 0
    for walk in walks:
        rows = slice(start, start := start + len(walk))
        for name, labels in zip(stays, (ours[rows], near[rows].argmax(axis=1), _remembering(near[rows])), strict=True):
            stays[name].append(float((labels[1:] == labels[:-1]).mean()))
    values = {name: np.array(one) for name, one in stays.items()}
    models = {name: {"share": bootstrap(one)} for name, one in values.items()}
    ahead = {name: {"share": bootstrap(values[SERVED] - one)} for name, one in values.items() if name != SERVED}
    return models, ahead


def prefixes(state: UserState) -> list[UserState]:
    """The user after each of the last STAYING_MOMENTS, by what the ring still holds."""
    history = state.history()
    ends = [at for at in range(audience.TOUCHES_MIN, len(history) + 1)
            if at == len(history) or history[at].ts_ms != history[at - 1].ts_ms][-STAYING_MOMENTS:]  # fmt: skip
    return [UserState(ring=history[:at], events=at, last_ts_ms=history[at - 1].ts_ms) for at in ends]


def _remembering(near: Float32) -> Ints:
    """(T, K) → (T,): stays until another leads by the margin."""
    labels = [int(near[0].argmax())]
    for one in near[1:]:
        best = int(one.argmax())
        labels.append(best if one[best] - one[labels[-1]] > core.MARGIN else labels[-1])
    return np.array(labels)


def figures(
    bundle: Bundle, vectors: Float32, labels: Ints, planted: Mapping[str, tuple[Ints, Ints]]
) -> dict[str, report.Draw]:
    """Users in the plane of the two largest variances, coloured by cluster; clusters beside what was planted."""
    clusters = bundle.audience.clusters
    _, _, axes = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    plane = (vectors - vectors.mean(axis=0)) @ axes[:2].T  # (U, 2)

    def scatter(figure: Any) -> None:
        figure.set_size_inches(9, 6)
        axis = figure.subplots()
        for at, one in enumerate(clusters):
            axis.scatter(*plane[labels == at].T, s=9, label=f"{one.name} ({int((labels == at).sum())})")
        axis.set_xlabel("first principal component")
        axis.set_ylabel("second")
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))

    found: dict[str, report.Draw] = {"Users by their vectors": scatter}
    for what, (rows, truth) in planted.items():
        table = np.zeros((len(clusters), int(truth.max()) + 1))
        np.add.at(table, (labels[rows], truth), 1)

        def heat(figure: Any, table: Any = table, what: str = what) -> None:
            axis = figure.subplots()
            axis.imshow(table / np.maximum(table.sum(axis=1, keepdims=True), 1), aspect="auto", cmap="Blues", vmin=0)
            axis.set_yticks(range(len(clusters)), [one.name for one in clusters], fontsize=7)
            axis.set_xlabel(f"planted {what}")

        found[f"Clusters and the planted {what}, share of each cluster"] = heat
    return found


def _of_items(words: Sequence[Sequence[str]]) -> Float32:
    """(N, W): which words an item has."""
    column: dict[str, int] = {}
    for some in words:
        for word in some:
            column.setdefault(word, len(column))
    found = np.zeros((len(words), len(column)), dtype=np.float32)
    for at, some in enumerate(words):
        found[at, [column[word] for word in some]] = 1
    return found


def _unit(rows: Any) -> Float32:
    found = np.asarray(rows, dtype=np.float32)
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9), dtype=np.float32)


def _ari(found: Any, truth: Any) -> float:
    return float(adjusted_rand_score(truth, found))


def _titles(items: Sequence[str], history: History) -> str:
    return " | ".join(history.items[item].title or item for item in items[:3] if item in history.items)
