"""What completes a basket: part of each order after the split is put into a cart, and the rest is looked for.

Ours is what the worker says and the read API answers (`stream.recommending.with_basket`): the given items are folded into
the user's state of the split as events, and asked of an index with the live counts and the links of a bundle of that time.
The others rank by what was in the orders before the split, each with the setting that was best on the last days before it.
Three questions: the rest of the order, whatever the user bought before (`exclude=none`); what of it is new to them, by the
rules of the worker; and the rest when only one item is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from scipy import sparse

from schemas.events import PRODUCT_ADDED, Event, Properties
from stream.core.ranking.counts import ItemCount
from stream.core.ranking.links import Links
from stream.core.ranking.recommend import Rules, excluded
from stream.core.user import state as states
from stream.core.user.fold import fold
from stream.core.user.state import DAY_MS, Kind, UserState
from stream.outbox import utc
from stream.recommending import with_basket
from stream.serving import Serving
from training.evaluation import metrics
from training.history.snapshot import History, Snapshot
from training.panel.method import Past
from training.recommend.links import orders
from training.recommend.without_encoder import WithoutEncoder

K = 10
MEASURES = ("recall@10", "ndcg@10", "hr@10")
BASKETS_MAX = 1_500
TUNED_ON_MAX = 500  # baskets
ITEMS_MIN = 2  # in an order that is asked about
GIVEN_MAX = 10  # of its items; half of them, if they are fewer
VALIDATION_DAYS = 30.0  # before the split, where settings are chosen
POPULARITY_DAYS = 30
NEIGHBOURS = 200  # per item
SERVED, KNN, CONFIDENCE, LIFT, POPULARITY = (
    "clickwake", "item-kNN of orders", "association rules, confidence", "association rules, lift", "popularity, 30 days",
)  # fmt: skip
RULES = {"cross-sell": Rules(exclude="none"), "cross-sell-new": Rules(), "cross-sell-one": Rules(exclude="none")}

NOBODY = UserState()
Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


class Basket(NamedTuple):
    """One order, as columns of the history's items."""

    user: int
    given: Ints
    wanted: Ints


class Setting(NamedTuple):
    """How pairs in orders are counted and judged."""

    half_life_days: float  # of an order
    by_size: float  # a line of an order of s items counts (s − 1) to the minus this
    shrink: float  # orders that speak against every pair


SETTINGS = [Setting(*one) for one in product((np.inf, 120.0, 60.0), (0.0, 0.5, 1.0), (0.2, 2.0, 20.0, 100.0))]


def baskets(
    past: Past, from_ms: int, until_ms: int, seed: int = 0, *, one: bool = False, most: int = BASKETS_MAX
) -> list[Basket]:
    """Orders between two times, of items that somebody touched before, in two parts by lot; `one`: one item is given."""
    some = (past.kinds == Kind.ORDER) & (past.ts_ms >= from_ms) & (past.ts_ms < until_ms)
    known = np.bincount(past.items[past.ts_ms < from_ms], minlength=past.n_items) > 0
    some &= known[past.items]
    lines, _ = orders(past.users[some], past.ts_ms[some], past.items[some], past.n_items)
    users = np.unique(np.stack([past.users[some], past.ts_ms[some]]), axis=1)[0]
    rng = np.random.default_rng(seed)
    whole = [at for at in range(len(users)) if lines.indptr[at + 1] - lines.indptr[at] >= ITEMS_MIN]
    found = []
    for at in np.sort(rng.permutation(whole)[:most]).tolist():
        items = rng.permutation(lines.indices[lines.indptr[at] : lines.indptr[at + 1]]).astype(np.int64)
        given = 1 if one else min(GIVEN_MAX, len(items) // 2)
        found.append(Basket(int(users[at]), items[:given], items[given:]))
    return found


class Pairs:
    """How often two items were in one order before a time, and each item at all."""

    def __init__(self, past: Past, until_ms: int, half_life_days: float, by_size: float) -> None:
        some = (past.kinds == Kind.ORDER) & (past.ts_ms < until_ms)
        lines, at_ms = orders(past.users[some], past.ts_ms[some], past.items[some], past.n_items)
        sizes = np.maximum(np.asarray(lines.sum(axis=1)).ravel() - 1, 1)
        weight = np.exp2(-(until_ms - at_ms) / DAY_MS / half_life_days) * sizes**-by_size
        both = (lines.T @ sparse.diags(weight) @ lines).tocoo()
        self.of_item = both.diagonal()  # (N,)
        other = both.row != both.col
        self.row, self.column, self.both = both.row[other], both.col[other], both.data[other]  # (P,) each

    def scores(self, method: str, shrink: float) -> sparse.csr_matrix:
        """(N, N): how much an item speaks for another, its NEIGHBOURS most. item-kNN: the cosine, shrunk (Sarwar et al.,
        "Item-based collaborative filtering", WWW 2001)."""
        mine, other = self.of_item[self.row], self.of_item[self.column]
        if method == KNN:
            against = np.sqrt(mine * other) + shrink
        else:
            against = (mine + shrink) * (1.0 if method == CONFIDENCE else other + shrink)
        n = len(self.of_item)
        found = sparse.csr_matrix((self.both / against, (self.row, self.column)), shape=(n, n))
        for at in range(n):
            own = found.data[found.indptr[at] : found.indptr[at + 1]]
            if len(own) > NEIGHBOURS:
                own[own < np.partition(own, -NEIGHBOURS)[-NEIGHBOURS]] = 0.0
        return found


def summed(scores: sparse.csr_matrix, items: Ints) -> Doubles:
    """(N,) for a basket."""
    return np.asarray(scores[items].sum(axis=0), dtype=np.float64).ravel()


def best(scores: Doubles, basket: Basket, wanted: Ints, kept: Ints) -> Ints:
    """The first K columns by scores (N,), without what is given or `kept` from the user; nothing that scores 0."""
    allowed = scores > 0
    allowed[basket.given] = allowed[kept] = False
    return metrics.top(scores, allowed, wanted, K)


def measured(ranked: Ints, wanted: Ints) -> tuple[float, float, float]:
    """MEASURES of one basket.

    >>> [round(one, 2) for one in measured(np.array([4, 1]), np.array([1, 2]))]
    [0.5, 0.39, 1.0]
    """
    return metrics.measures(ranked[:K], wanted)[:3]


def tuned(past: Past, split_ms: int, seed: int = 0) -> dict[str, sparse.csr_matrix]:
    """Method → its scores (N, N) at the split, by the setting with the best NDCG@10 on orders of the last days before."""
    earlier_ms = int(split_ms - VALIDATION_DAYS * DAY_MS)
    asked = baskets(past, earlier_ms, split_ms, seed, most=TUNED_ON_MAX)
    chosen: dict[str, tuple[float, Setting]] = {}
    pairs: dict[tuple[float, float], Pairs] = {}
    nothing = np.zeros(0, dtype=np.int64)
    for setting in SETTINGS:
        counted = setting.half_life_days, setting.by_size
        if counted not in pairs:
            pairs = {counted: Pairs(past, earlier_ms, *counted)}
        for name in (KNN, CONFIDENCE, LIFT):
            scores = pairs[counted].scores(name, setting.shrink)
            quality = float(np.mean([
                measured(best(summed(scores, one.given), one, one.wanted, nothing), one.wanted)[1] for one in asked
            ])) if asked else 0.0  # fmt: skip
            if name not in chosen or quality > chosen[name][0]:
                chosen[name] = quality, setting
    return {name: Pairs(past, split_ms, one.half_life_days, one.by_size).scores(name, one.shrink)
            for name, (_, one) in chosen.items()}  # fmt: skip


class Served:
    """A worker's serving at the split."""

    def __init__(self, before: History, counts: Mapping[str, ItemCount], links: Links) -> None:
        self.tenant = before.events[0].tenant
        self.serving = Serving(WithoutEncoder(None, links))
        blank = np.zeros(self.serving.text_dim, dtype=np.float32)
        self.serving.put_items([(item, blank) for item in before.items.values()])
        self.index = self.serving.index(self.tenant)
        for key, count in counts.items():
            self.index.set_counts(key.split("/", 1)[1], 0, count)

    def ask(self, user: str, state: UserState, items: list[str], at_ms: int, rules: Rules) -> list[str]:
        """What is said once the items were put into the user's cart, one event each."""
        mine = states.decode(states.encode(state))
        for number, item in enumerate(items):
            put = Event(message_id=f"put-{number}", type="track", timestamp=utc(at_ms + number), tenant=self.tenant,
                        event=PRODUCT_ADDED, user_id=user, properties=Properties(product_id=item))  # fmt: skip
            fold(mine, put, at_ms + number, 0)
            mine.put_event_id = put.message_id
        said = with_basket(self.serving, self.tenant, user, mine, msgspec.structs.replace(rules, top_n=K))
        return [one.item_id for one in said.items] if said else []


def evaluated(
    before: History, past: Past, item_ids: list[str], number: Mapping[str, int], snapshot: Snapshot, links: Links,
    split_ms: int, end_ms: int, seed: int = 0,
) -> dict[str, tuple[dict[str, dict[str, Doubles]], Ints]]:  # fmt: skip
    """Sub-task → (method → measure → value of each basket (B,), the baskets' users (B,)).

    `before`, `snapshot` and `links` are as of the split; `past`, of columns `item_ids`, knows what came after it.
    """
    served, methods = Served(before, snapshot.counts.counts, links), tuned(past, split_ms, seed)
    name_of = {at: user for user, at in number.items()}
    column = {item: at for at, item in enumerate(item_ids)}
    recent = (past.ts_ms < split_ms) & (past.ts_ms >= split_ms - POPULARITY_DAYS * DAY_MS)
    popular = np.bincount(past.items[recent], minlength=past.n_items).astype(np.float64)
    found = {}
    for task, rules in RULES.items():
        rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in (SERVED, *methods, POPULARITY)}
        users = []
        for basket in baskets(past, split_ms, end_ms, seed, one=task == "cross-sell-one"):
            user = name_of[basket.user]
            state = snapshot.states.get(user, NOBODY)
            kept = np.array([column[served.index.ids[row]] for row in excluded(state, served.index, rules)], dtype=np.int64)
            wanted = np.setdiff1d(basket.wanted, kept)
            if not len(wanted):
                continue
            users.append(basket.user)
            said = served.ask(user, state, [item_ids[at] for at in basket.given], split_ms, rules)
            ranked = {SERVED: np.array([column[item] for item in said], dtype=np.int64)}
            ranked |= {name: best(summed(scores, basket.given), basket, wanted, kept) for name, scores in methods.items()}
            ranked[POPULARITY] = best(popular, basket, wanted, kept)
            for name, some in ranked.items():
                rows[name].append(measured(some, wanted))
        tables = {name: np.array(some, dtype=np.float64).reshape(-1, len(MEASURES)) for name, some in rows.items()}
        found[task] = (
            {name: {one: table[:, at] for at, one in enumerate(MEASURES)} for name, table in tables.items()},
            np.array(users, dtype=np.int64),
        )  # fmt: skip
    return found
