"""How well satisfaction is predicted by user, item and strategy, and whether effects of strategies are found.

simulated: worlds in which orders come under offers, drawn by lot with chances that depend on the buyer, and in which a
voucher pleases newer buyers and displeases regular ones. Opinions said before the split are learned from; those whose
strategy was decided after it are judged, by the history as of each decision. `effects`: each offer against the plain one,
for newer and for regular buyers after the split, beside what is planted; one example an effect. clickhouse: what the sink
stored; nobody knows the truth there, so effects are not judged. No public data set at hand has strategies and opinions
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from math import sqrt
from typing import Any, NamedTuple

import msgspec
import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

from producers.simulate.planted import Buyer
from producers.simulate.strategies import PLACEMENT, buyer, decision, p_good
from producers.simulate.truth import Truth
from producers.simulate.world import World
from schemas.events import PRODUCT_REVIEWED, user_of
from stream.adapters.database.strategies import read
from stream.core.opinions import opinions
from stream.core.opinions.strategies import NONE, Model, Rated, as_of, known_ms, learn
from stream.core.segments.segment_fields import values_of
from stream.core.segments.segment_rules import Rule, RulesFile, compiled
from stream.core.statistics.bandit import Float64
from stream.core.user.fold import Outcome, fold
from stream.core.user.state import UserState
from training.evaluation.comparison import Comparison, Measures, Statistic, iso, merged, statistics, under
from training.evaluation.evaluations import Evaluated, Request
from training.evaluation.metrics import FloatArray
from training.history.snapshot import EmptyHistory, History, Snapshot, from_events, join

SERVED, SIMULATED, CLICKHOUSE = "clickwake", "simulated", "clickhouse"
WORLDS, SHOPPERS, DAYS = 6, 800, 150
LEARNED_SHARE = 0.7  # of the time
CELL_BEFORE = 10.0  # opinions that draw a cell's mean to its strategy's
RULES = compiled(RulesFile(segments=(Rule(name="regular buyer", when="orders >= 4"),)))
PLAIN = f"offer/{PLACEMENT}/plain"
VALUE, LOW, HIGH = 0, 1, 2  # columns of what a method says


class Said(NamedTuple):
    """An opinion with what is true of it: `taste`, the chance of a good review without any strategy (NaN where nothing is
    planted), and who the buyer was (None where no strategy changes anything)."""

    row: Rated
    taste: float
    who: Buyer | None


def run(request: Request) -> Evaluated:
    """`clickwake evaluate strategies`."""
    if request.dataset == CLICKHOUSE:
        return _stored(request)
    count, first = int(request.options.get("worlds", WORLDS)), int(request.options.get("seed", 7))
    judged = []
    for seed in range(first, first + count):
        world = World(seed=seed, shoppers=int(request.options.get("shoppers", SHOPPERS)),
                      days=int(request.options.get("days", DAYS)), strategies=True)  # fmt: skip
        said = simulated(world)
        under_offers = sum(one.row.strategy != NONE for one in said)
        request.say(f"world {seed}: {len(said):,} opinions, {under_offers:,} under an offer")
        split = world.start + timedelta(days=round(LEARNED_SHARE * (world.end - world.start).days))
        judged.append(judge(said, split, world.truth(), seed))
    return _compared(request, f"{count} worlds, each after {LEARNED_SHARE:.0%} of its time", judged)


def _stored(request: Request) -> Evaluated:
    rows = read(request.settings.clickhouse, str(request.path)).rows
    if len(rows) < 100:
        raise EmptyHistory(f"tenant {request.path} has {len(rows)} opinions about items in ClickHouse: too few to judge by")
    times = sorted(row.said_ms for row in rows)
    split_ms = request.split_ms or times[int(LEARNED_SHARE * len(times))]
    said = [Said(row, float("nan"), None) for row in rows]
    return _compared(request, iso(split_ms), [judge(said, split_ms, None, request.settings.training.seed)])


class Crowd:
    """Users' states as of a time that does not go back: folded as `training.history.snapshot` does, without the examples and
    counts that take most of its time."""

    def __init__(self, history: History) -> None:
        self._events, self._at, self._snapshot = history.events, 0, Snapshot()

    def state(self, user: str, at_ms: int) -> UserState:
        while self._at < len(self._events) and (event := self._events[self._at]).ts_ms < at_ms:
            state = self._snapshot.states.setdefault(event.user, UserState())
            if fold(state, event, event.ts_ms, lateness_max_ms=0)[0] is Outcome.FOLDED:
                join(self._snapshot, event)
            self._at += 1
        return self._snapshot.states.get(user, UserState())


def simulated(world: World) -> list[Said]:
    """Each review of a world with the offer of the order it came of, joined as the view strategy_opinions joins them."""
    events, truth = list(world.history()), world.truth()
    crowd, found = Crowd(from_events(events, world.items(), SIMULATED)), []
    ordered: dict[tuple[str, str], tuple[int, str, float, tuple[str, ...], Buyer]] = {}

    def groups(user: str, at_ms: int) -> tuple[str, ...]:
        return tuple(RULES.inside(world.shop.tenant, values_of(crowd.state(user, at_ms), at_ms, 0.0)))

    for event in events:
        user = user_of(event)
        made = decision(truth.strategies, event)
        if made is not None and made.offer is not None:
            at_ms, order = _ms(made.served_at), event["properties"]["order_id"]
            for line in event["properties"]["products"]:
                ordered[user, line["product_id"]] = (
                    at_ms, f"offer/{made.offer.placement}/{made.offer.offer_id}", made.offer.propensity, groups(user, at_ms),
                    buyer(int(order.rsplit("-", 1)[1])))  # fmt: skip
        if event.get("event") == PRODUCT_REVIEWED:
            told = opinions.said(PRODUCT_REVIEWED, msgspec.json.encode(event["properties"]))
            assert told is not None and told.stars is not None
            at_ms, index = _ms(datetime.fromisoformat(event["timestamp"])), truth.item_index[told.item_id]
            decided = ordered.get((user, told.item_id))
            who, item = None if decided is None else decided[4], truth.items[index]
            row = Rated(user, told.item_id, _category(world, index), groups(user, at_ms) if decided is None else decided[3],
                        NONE if decided is None else decided[1], "" if decided is None else f"placement/{PLACEMENT}",
                        None if decided is None else decided[2], at_ms if decided is None else decided[0], at_ms,
                        opinions.satisfaction(told.stars, None, None) or 0.0)  # fmt: skip
            fell = any(item.brand == one.brand and at_ms >= one.from_ms for one in truth.falls)
            taste = truth.falls[0].p_good if fell else _taste(truth, event, index, at_ms)
            found.append(Said(row, taste, None if fell else who))
    return found


def _taste(truth: Truth, event: dict[str, Any], index: int, at_ms: int) -> float:
    shopper = truth.shoppers[int(event["messageId"].split("-")[2])]
    return 0.9 if truth.mask(shopper, truth.period(shopper, at_ms))[index] else 0.4


def _category(world: World, index: int) -> str:
    return (world.catalog.products[index].item.category or "").partition(" >")[0]


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def satisfaction_of(p: float) -> float:
    """What a review is expected to say: good ones have 4 or 5 stars, others 1, 2 or 3.

    >>> satisfaction_of(1.0), satisfaction_of(0.0)
    (0.875, 0.25)
    """
    return 0.25 + 0.625 * p


class Judged(NamedTuple):
    """One history. `predicted`: method → (N, 3) mean and interval of each opinion after the split; `truth` (N, 2): said, and
    expected. `effects`: method → (E, 3); `planted` (E,)."""

    predicted: dict[str, Float64]
    truth: Float64
    effects: dict[str, Float64]
    planted: Float64


def judge(said: Sequence[Said], split: datetime | int, truth: Truth | None, seed: int) -> Judged:
    """Learn from what was said before the split, predict what was decided after it."""
    split_ms = split if isinstance(split, int) else _ms(split)
    every = [one.row for one in said]
    known, _ = as_of(every)
    past = [at for at, row in enumerate(every) if row.said_ms < split_ms]
    after = [at for at, row in enumerate(every) if known_ms(row) >= split_ms]
    if not past or not after:
        raise EmptyHistory(f"{len(past)} opinions were said before {iso(split_ms)}, {len(after)} decided after it: name "
                           "another split, or a longer history")  # fmt: skip
    rows, asked = [every[at] for at in past], [every[at] for at in after]
    model = learn(rows)
    x = model.levels.of_rows(asked, known[after])
    ours = np.array([[one.value, one.low, one.high] for one in map(model.posterior.seen, x)])
    predicted = {SERVED: ours, **{name: np.column_stack([mean] * 3) for name, mean in
                                  baselines(model, rows, asked, known[past], known[after], seed).items()}}  # fmt: skip
    expected = [satisfaction_of(said[at].taste if truth is None else _p(said[at], truth, every[at].strategy))
                for at in after]  # fmt: skip
    stated = np.column_stack([[row.satisfaction for row in asked], expected])
    effects, planted = ({}, np.zeros(0)) if truth is None else effects_of(
        model, [said[at] for at in past], [said[at] for at in after], known[after], truth)  # fmt: skip
    return Judged(predicted, stated, effects, planted)


def _p(one: Said, truth: Truth, strategy: str) -> float:
    """Chance of a good review under a strategy."""
    added = {f"offer/{each.placement}/{each.offer_id}": each.p_good_added for each in truth.strategies}
    if one.who is None or strategy not in added or one.who not in added[strategy]:
        return one.taste
    return p_good(one.taste, added[strategy][one.who])


def baselines(
    model: Model, rows: Sequence[Rated], asked: Sequence[Rated], before: Float64, now: Float64, seed: int
) -> dict[str, Float64]:  # fmt: skip
    """Method → (N,). Leanings are as of each decision for all of them."""
    y = np.array([row.satisfaction for row in rows])
    mean = float(y.mean())
    by_strategy = _means([row.strategy for row in rows], y, mean)
    cells = _means([(row.strategy, row.groups) for row in rows], y, None, {
        (row.strategy, row.groups): by_strategy[row.strategy] for row in rows})  # fmt: skip
    trees = HistGradientBoostingRegressor(random_state=seed).fit(model.levels.of_rows(rows, before), y)
    return {
        "mean of all": np.full(len(asked), mean),
        "item, shrunk": mean + now[:, 1],
        "user + item, shrunk": mean + now.sum(axis=1),
        "mean of the strategy": np.array([by_strategy.get(row.strategy, mean) for row in asked]),
        "mean of strategy and groups, shrunk": np.array([
            cells.get((row.strategy, row.groups), by_strategy.get(row.strategy, mean)) for row in asked]),
        "gradient boosting, same features": trees.predict(model.levels.of_rows(asked, now)),
    }  # fmt: skip


def _means(names: Sequence[Any], y: Float64, to: float | None, own: dict[Any, float] | None = None) -> dict[Any, float]:
    """The mean of each name, drawn to `to`, or to that of its own."""
    sums: dict[Any, list[float]] = {}
    for name, value in zip(names, y.tolist(), strict=True):
        sums.setdefault(name, []).append(value)
    return {name: (sum(some) + CELL_BEFORE * (to if own is None else own[name])) / (len(some) + CELL_BEFORE)  # type: ignore[operator]
            for name, some in sums.items()}  # fmt: skip


def effects_of(
    model: Model, past: Sequence[Said], after: Sequence[Said], known: Float64, truth: Truth
) -> tuple[dict[str, Float64], Float64]:  # fmt: skip
    """Method → (E, 3), planted (E,): each offer minus the plain one, for newer and regular buyers after the split."""
    names = [f"offer/{each.placement}/{each.offer_id}" for each in truth.strategies]
    found: dict[str, list[tuple[float, float, float]]] = {SERVED: [], "means of the strategies": [], "means by buyer": []}
    planted = []
    for who in ("newer", "regular"):
        places = [at for at, one in enumerate(after) if one.who == who]
        some, then = [after[at] for at in places], known[places]
        if not some:
            continue
        for name in names:
            if name == PLAIN:
                continue
            planted.append(float(np.mean([satisfaction_of(_p(one, truth, name)) - satisfaction_of(_p(one, truth, PLAIN))
                                          for one in some])))  # fmt: skip
            one, other = (model.levels.of_rows([each.row._replace(strategy=under) for each in some], then).mean(axis=0)
                          for under in (name, PLAIN))  # fmt: skip
            ours = model.posterior.of(one - other)
            found[SERVED].append((ours.value, ours.low, ours.high))
            found["means of the strategies"].append(_difference([each.row for each in past], name))
            found["means by buyer"].append(_difference([each.row for each in past if each.who == who], name))
    return {name: np.array(each) for name, each in found.items()}, np.array(planted)


def _difference(rows: Sequence[Rated], strategy: str) -> tuple[float, float, float]:
    """Of two means as they are, with the 95% interval of Welch's."""
    one, other = (np.array([row.satisfaction for row in rows if row.strategy == name]) for name in (strategy, PLAIN))
    if min(len(one), len(other)) < 2:
        return 0.0, -1.0, 1.0
    value = float(one.mean() - other.mean())
    half = 1.96 * sqrt(one.var(ddof=1) / len(one) + other.var(ddof=1) / len(other))
    return value, value - half, value + half


def _compared(request: Request, split: str, judged: Sequence[Judged]) -> Evaluated:
    truth = np.concatenate([one.truth for one in judged])
    predicted = {name: np.concatenate([one.predicted[name] for one in judged]) for name in judged[0].predicted}
    wanted: dict[str, Statistic] = {
        "rmse": lambda said, true: sqrt(float(((said[:, VALUE] - true[:, 0]) ** 2).mean())),
        "coverage": lambda said, true: float(((said[:, LOW] <= true[:, 0]) & (true[:, 0] <= said[:, HIGH])).mean()),
    }
    if request.dataset == SIMULATED:
        wanted["rmse_expected"] = lambda said, true: sqrt(float(((said[:, VALUE] - true[:, 1]) ** 2).mean()))
    only = {name: {"rmse", "rmse_expected"} & set(wanted) for name in predicted if name != SERVED}
    parts = [statistics(predicted, truth, wanted, SERVED, only=only)]
    if judged[0].effects:
        effects = {name: np.concatenate([one.effects[name] for one in judged]) for name in judged[0].effects}
        planted = np.concatenate([one.planted for one in judged])
        models, ahead = statistics(effects, planted, EFFECTS, SERVED)
        parts.append((under("effects", models), under("effects", ahead)))
    models_of: list[dict[str, Measures]] = [one for one, _ in parts]
    found = Comparison(
        task="strategies", dataset=request.dataset, split=split, n=len(truth), served=SERVED, models=merged(*models_of),
        ahead=merged(*(one for _, one in parts)),
        settings=dict(request.options),
    )  # fmt: skip
    return Evaluated(found)


def _decided(found: FloatArray) -> Any:
    return (found[:, LOW] > 0) | (found[:, HIGH] < 0)


def _found(found: FloatArray, planted: FloatArray) -> float:
    """Of the effects that are planted, those that were decided and by the right sign."""
    there = planted != 0
    return float((_decided(found) & (found[:, VALUE] * planted > 0))[there].mean()) if there.any() else float("nan")


EFFECTS: dict[str, Statistic] = {
    "mae": lambda found, planted: float(np.abs(found[:, VALUE] - planted).mean()),
    "coverage": lambda found, planted: float(((found[:, LOW] <= planted) & (planted <= found[:, HIGH])).mean()),
    "found": _found,
    "wrong": lambda found, planted: float((_decided(found) & (found[:, VALUE] * planted <= 0)).mean()),
}
