"""The scenarios `due` and `due_categories` asked after a split: of what users bought before, what do they buy again within a
window's length?

Ours is what the read API answers (`stream.api.choosing`), from states that are folded on and a bundle of the split; of
categories which ones, not which items of them. Every known user is asked at the split and after each further window. Of who
buys something again in it: is that among ten? Of whom ours says something: how much of that is bought, and of as many that a
rule would have said? Rules rank all that the state knows the user to have bought; of equals, what was bought last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from stream.api.choosing import Wanted, due
from stream.api.requests import Ask
from stream.core.ranking.links import Links
from stream.core.ranking.recommend import Rules
from stream.core.survival.reminders import Policy, Rhythms, categories_due
from stream.core.survival.repurchase import Repurchase, features
from stream.core.user.state import DAY_MS, Kind, UserState
from stream.serving import Serving
from training.evaluation import metrics
from training.evaluation.clustered import Ints, Values, by_user
from training.evaluation.comparison import Measures, merged
from training.history.categories import NONE, categories, with_categories
from training.history.snapshot import History, Replay
from training.panel.method import Past
from training.recommend.links import average_gaps, order_gaps
from training.recommend.without_encoder import WithoutEncoder

K = 10
MEASURES = ("recall@10", "ndcg@10", "hr@10")
ASKED = Wanted(Ask(scenario="due", n=K), Rules(top_n=K, exclude="none"))
FREQUENT, INTERVAL, RECENT = "most frequently bought", "average interval: how near", "most recently bought"
MODEL = "clickwake, whether a window has begun or not"  # what windows cost, which keep off what was just bought


class Bought(NamedTuple):
    """What a state knows of an item, or of a category."""

    orders: int
    last_ms: int


class Subject(NamedTuple):
    """What is asked about, items or categories: their names, columns of `past`; what is served; P(bought within a window's
    length) and what was bought, of all that the state knows the user to have bought."""

    past: Past
    names: list[str]
    served: Callable[[UserState, int], list[str]]
    chances: Callable[[UserState, int], Mapping[str, float]]
    bought: Callable[[UserState], Mapping[str, Bought]]


class Answers(NamedTuple):
    """Method → what it says, best first, of one user at one time; ours may say less than K, or nothing."""

    user: int
    ranked: dict[str, list[str]]
    wanted: set[str]


def of_items(history: History, past: Past, models: WithoutEncoder, policy: Policy) -> Subject:
    serving, tenant, rhythms = _serving(history, models)

    def served(state: UserState, now_ms: int) -> list[str]:
        return [one.item_id for one in due(serving, tenant, state, ASKED, now_ms, policy).items()]

    def chances(state: UserState, now_ms: int) -> dict[str, float]:
        return _chances(state, now_ms, rhythms, policy)

    return Subject(past, list(history.items), served, chances, _bought)


def of_categories(history: History, past: Past, models: WithoutEncoder, policy: Policy) -> Subject:
    """Of a history whose items have categories."""
    kinds, (_, _, rhythms) = categories(history), _serving(history, models)

    def served(state: UserState, now_ms: int) -> list[str]:
        return [one.category for one, _ in categories_due(state, now_ms, rhythms, policy)]

    def chances(state: UserState, now_ms: int) -> dict[str, float]:
        """That anything of it is bought; items are taken as independent, as they are where it is served."""
        none: dict[str, float] = {}
        for item, chance in _chances(state, now_ms, rhythms, policy).items():
            if category := rhythms.category(item):
                none[category] = none.get(category, 1.0) * (1 - chance)
        return {category: 1 - one for category, one in none.items()}

    def bought(state: UserState) -> dict[str, Bought]:
        found: dict[str, Bought] = {}
        for item, one in _bought(state).items():
            if category := rhythms.category(item):
                before = found.get(category, Bought(0, 0))
                found[category] = Bought(before.orders + one.orders, max(before.last_ms, one.last_ms))
        return found

    return Subject(kinds.of_past(past), kinds.names, served, chances, bought)


def _serving(history: History, models: WithoutEncoder) -> tuple[Serving, str, Rhythms]:
    serving, tenant = Serving(models), history.events[0].tenant
    serving.put_items([(item, np.zeros(models.manifest.text_dim, dtype=np.float32)) for item in history.items.values()])
    rhythms = serving.rhythms(tenant)
    assert rhythms is not None, "the bundle was made with a model of repurchase"
    return serving, tenant, rhythms


def _chances(state: UserState, now_ms: int, rhythms: Rhythms, policy: Policy) -> dict[str, float]:
    items, x = features(state, now_ms, rhythms.repeat)
    return dict(zip(items, rhythms.model.p_within(x, policy.window_days).tolist(), strict=True))


def _bought(state: UserState) -> dict[str, Bought]:
    return {item: Bought(stat.orders, stat.last_order_ts_ms) for item, stat in state.items.items() if stat.orders}


def by_rules(bought: Mapping[str, Bought], now_ms: int, gap_days: Mapping[str, float]) -> dict[str, list[str]]:
    """What the rules would say of what was bought."""
    latest = sorted(bought, key=lambda name: -bought[name].last_ms)  # then equals stay in this order

    def off(name: str) -> float:
        silence_days = (now_ms - bought[name].last_ms) / DAY_MS
        return abs(float(np.log((silence_days + 1) / (gap_days[name] + 1))))

    return {
        FREQUENT: sorted(latest, key=lambda name: -bought[name].orders), INTERVAL: sorted(latest, key=off), RECENT: latest,
    }  # fmt: skip


def bought_again(past: Past, from_ms: int, until_ms: int) -> dict[int, Ints]:
    """User → columns of the items ordered from one time to another that the same user ordered before."""
    orders = past.kinds == Kind.ORDER
    code = past.users * past.n_items + past.items
    before = np.unique(code[orders & (past.ts_ms < from_ms)])
    after = np.unique(code[orders & (past.ts_ms >= from_ms) & (past.ts_ms < until_ms)])
    users, items = np.divmod(np.intersect1d(before, after, assume_unique=True), past.n_items)
    return {int(user): items[users == user] for user in np.unique(users)}


def answers(
    history: History, number: Mapping[str, int], split_ms: int, subjects: Mapping[str, Subject], policy: Policy, served: str
) -> dict[str, list[Answers]]:  # fmt: skip
    """Of each subject: of every known user, at the split and as often after it as a whole window is left."""
    window_ms = round(policy.window_days * DAY_MS)
    gap_days = {}
    for name, one in subjects.items():
        gaps = average_gaps(order_gaps(one.past, split_ms), len(one.names), prior=0.0).tolist()
        gap_days[name] = dict(zip(one.names, gaps, strict=True))
    replay = Replay(history)
    found: dict[str, list[Answers]] = {name: [] for name in subjects}
    for now_ms in range(split_ms, history.to_ms - window_ms + 1, window_ms):
        replay.advance(now_ms)
        wanted = {name: bought_again(one.past, now_ms, now_ms + window_ms) for name, one in subjects.items()}
        for user, state in replay.snapshot.states.items():
            if not state.known or not state.orders:
                continue
            who = number[user]
            for name, one in subjects.items():
                chances = one.chances(state, now_ms)
                ranked = {served: one.served(state, now_ms), MODEL: sorted(chances, key=chances.__getitem__, reverse=True)}
                ranked |= by_rules(one.bought(state), now_ms, gap_days[name])
                found[name].append(Answers(who, ranked, {one.names[at] for at in wanted[name].get(who, ())}))
    return found


def judged(found: list[Answers], served: str, group: str) -> tuple[dict[str, Measures], dict[str, Measures]]:
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
        part, difference = by_user(values, users, served, f"{group}.{measure}")
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
    """(models, ahead, how many were asked) by the settings' policy; `model` and `links` are of the time before the split.
    Where categories are derived from titles, items are asked without them, as such a catalog is served."""
    models, policy = WithoutEncoder(model, links), Policy()
    subjects = {"due": of_items(history, past, models, policy)}
    catalogued, whence = with_categories(history)
    if whence != NONE:
        subjects["due.categories"] = of_categories(catalogued, past, models, policy)
    parts: list[tuple[dict[str, Measures], dict[str, Measures]]] = []
    asked: dict[str, float] = {}
    for group, found in answers(history, number, split_ms, subjects, policy, served).items():
        parts.append(judged(found, served, group))
        asked |= {
            f"{group} questions": len(found),
            f"{group}: something bought again": sum(bool(one.wanted) for one in found),
            f"{group}: something said": sum(bool(one.ranked[served]) for one in found),
        }
    return merged(*(one for one, _ in parts)), merged(*(one for _, one in parts)), asked
