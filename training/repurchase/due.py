"""The scenario `due` asked after a split: of what users bought before, what do they buy again within a window's length?

Ours is what the read API answers (`stream.api.choosing.due`), from states that are folded on and a bundle of the split.
Every known user is asked at the split and after each further window. Of who buys something again in it: is that among ten
items? Of whom ours says something: how much of that is bought, and of as many items that a rule would have said? Rules rank
all that the state knows the user to have bought; of equals, what was bought last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from stream.api.choosing import Wanted, due
from stream.api.requests import Ask
from stream.core.ranking.links import Links
from stream.core.ranking.recommend import Rules
from stream.core.survival.reminders import Policy, Rhythms
from stream.core.survival.repurchase import Repurchase, features
from stream.core.user.state import DAY_MS, ItemStat, Kind, UserState
from stream.serving import Serving
from training.evaluation import metrics
from training.evaluation.clustered import Ints, Values, by_user
from training.evaluation.comparison import Measures, merged
from training.history.snapshot import History, Replay
from training.panel.method import Past
from training.recommend.links import average_gaps, order_gaps
from training.recommend.without_encoder import WithoutEncoder

K = 10
MEASURES = ("recall@10", "ndcg@10", "hr@10")
ASKED = Wanted(Ask(scenario="due", n=K), Rules(top_n=K, exclude="none"))
FREQUENT, INTERVAL, RECENT = "most frequent items of the user", "item's average interval: how near", "most recently bought"
MODEL = "clickwake, whether a window has begun or not"  # what windows cost, which keep off what was just bought


class Answers(NamedTuple):
    """Method → items, best first, of one user at one time; ours may be fewer than K, or none."""

    user: int
    ranked: dict[str, list[str]]
    wanted: set[str]


def by_model(state: UserState, now_ms: int, rhythms: Rhythms, policy: Policy) -> list[str]:
    """What the state knows the user to have bought, by the chance that it is bought within a window's length."""
    items, x = features(state, now_ms, rhythms.repeat)
    chances = rhythms.model.p_within(x, policy.window_days)
    return [items[at] for at in np.argsort(-chances, kind="stable").tolist()]


def by_rules(state: UserState, now_ms: int, gap_days: Mapping[str, float]) -> dict[str, list[str]]:
    """What the rules would say of what the state knows the user to have bought."""
    bought = [(item, stat) for item, stat in state.items.items() if stat.orders]
    bought.sort(key=lambda one: -one[1].last_order_ts_ms)  # then equals stay in this order

    def off(item: str, stat: ItemStat) -> float:
        silence_days = (now_ms - stat.last_order_ts_ms) / DAY_MS
        return abs(float(np.log((silence_days + 1) / (gap_days[item] + 1))))

    return {
        FREQUENT: [item for item, _ in sorted(bought, key=lambda one: -one[1].orders)],
        INTERVAL: [item for item, _ in sorted(bought, key=lambda one: off(*one))],
        RECENT: [item for item, _ in bought],
    }


def bought_again(past: Past, from_ms: int, until_ms: int) -> dict[int, Ints]:
    """User → columns of the items ordered from one time to another that the same user ordered before."""
    orders = past.kinds == Kind.ORDER
    code = past.users * past.n_items + past.items
    before = np.unique(code[orders & (past.ts_ms < from_ms)])
    after = np.unique(code[orders & (past.ts_ms >= from_ms) & (past.ts_ms < until_ms)])
    users, items = np.divmod(np.intersect1d(before, after, assume_unique=True), past.n_items)
    return {int(user): items[users == user] for user in np.unique(users)}


def answers(
    history: History, past: Past, number: Mapping[str, int], split_ms: int, models: WithoutEncoder, policy: Policy,
    served: str,
) -> list[Answers]:  # fmt: skip
    """Of every known user, at the split and as often after it as a whole window is left."""
    serving, tenant = Serving(models), history.events[0].tenant
    serving.put_items([(item, np.zeros(models.manifest.text_dim, dtype=np.float32)) for item in history.items.values()])
    rhythms = serving.rhythms(tenant)
    assert rhythms is not None, "the bundle was made with a model of repurchase"
    item_ids, window_ms = list(history.items), round(policy.window_days * DAY_MS)
    gaps = average_gaps(order_gaps(past, split_ms), len(item_ids), prior=0.0).tolist()
    gap_days = dict(zip(item_ids, gaps, strict=True))
    replay, found = Replay(history), []
    for now_ms in range(split_ms, history.to_ms - window_ms + 1, window_ms):
        replay.advance(now_ms)
        wanted = bought_again(past, now_ms, now_ms + window_ms)
        for user, state in replay.snapshot.states.items():
            if not state.known or not state.orders:
                continue
            said = due(serving, tenant, state, ASKED, now_ms, policy).items()
            ranked = {served: [one.item_id for one in said], MODEL: by_model(state, now_ms, rhythms, policy)}
            ranked |= by_rules(state, now_ms, gap_days)
            found.append(Answers(number[user], ranked, {item_ids[at] for at in wanted.get(number[user], ())}))
    return found


def judged(found: list[Answers], served: str) -> tuple[dict[str, Measures], dict[str, Measures]]:
    """(models, ahead): MEASURES of those who bought something again, and the precision of as many as ours said; users are
    drawn with all their questions."""
    models: dict[str, Measures] = {}
    ahead: dict[str, Measures] = {}
    names = (served, MODEL, FREQUENT, INTERVAL, RECENT)
    back = [one for one in found if one.wanted]
    tables = {name: np.array([_measured(one, name) for one in back]).reshape(-1, len(MEASURES)) for name in names}
    parts = {measure: {name: table[:, at] for name, table in tables.items()} for at, measure in enumerate(MEASURES)}
    told = [one for one in found if one.ranked[served]]
    precise: dict[str, Values] = {name: np.array([_precision(one, name, served) for one in told]) for name in names}
    for some, measure, values in (*((back, measure, parts[measure]) for measure in MEASURES), (told, "precision", precise)):
        users: Ints = np.array([one.user for one in some], dtype=np.int64)
        part, difference = by_user(values, users, served, f"due.{measure}")
        models, ahead = merged(models, part), merged(ahead, difference)
    return models, ahead


def _measured(one: Answers, name: str) -> tuple[float, float, float]:
    column = {item: at for at, item in enumerate({*one.ranked[name][:K], *one.wanted})}
    ranked, wanted = ([column[item] for item in items] for items in (one.ranked[name][:K], one.wanted))
    return metrics.measures(np.array(ranked, dtype=np.int64), np.array(wanted, dtype=np.int64))[:3]


def _precision(one: Answers, name: str, served: str) -> float:
    said = one.ranked[name][: len(one.ranked[served])]
    return sum(item in one.wanted for item in said) / len(said)


def evaluated(
    history: History, past: Past, number: Mapping[str, int], split_ms: int, model: Repurchase, links: Links, served: str
) -> tuple[dict[str, Measures], dict[str, Measures], dict[str, float]]:
    """(models, ahead, how many were asked) by the settings' policy; `model` and `links` are of the time before the split."""
    found = answers(history, past, number, split_ms, WithoutEncoder(model, links), Policy(), served)
    asked = {"due questions": len(found), "due: something bought again": sum(bool(one.wanted) for one in found),
             "due: something said": sum(bool(one.ranked[served]) for one in found)}  # fmt: skip
    return *judged(found, served), {name: float(n) for name, n in asked.items()}
