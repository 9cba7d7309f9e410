"""Buying again, learned: planted rates are found, permuted answers teach nothing, the future changes no feature."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from schemas.events import ms
from stream.core.survival.reminders import Policy
from stream.core.survival.repurchase import FEATURES, Repurchase, own_gap_days
from stream.core.user.state import DAY_MS
from training.evaluation import clustered, metrics
from training.history import snapshot
from training.history.snapshot import EmptyHistory, History, Replay, interactions
from training.recommend import links
from training.recommend.without_encoder import WithoutEncoder
from training.repurchase import cross_sell, due, evaluate_repurchase, reminders, repurchase
from training.repurchase.repurchase import HORIZONS_DAYS, Pairs

START_MS = 1_600_000_000_000
DAYS = 300
SPLIT_MS = START_MS + 200 * DAY_MS


def order(user: int, day: int, items: list[str]) -> dict[str, Any]:
    return {
        "messageId": f"{user}-{day}", "type": "track", "event": "Order Completed", "tenant": "t", "userId": f"u{user}",
        "lane": "import", "timestamp": (np.datetime64(START_MS + day * DAY_MS, "ms")).astype(str) + "Z",
        "properties": {"order_id": f"{user}-{day}", "products": [
            {"product_id": item, "price": 1.0, "quantity": 1} for item in items
        ]},
    }  # fmt: skip


@pytest.fixture(scope="module")
def history() -> History:
    """60 users: half buy "milk" with every order, each order holds a pair of things that go together, bought once."""
    rng = np.random.default_rng(3)
    events = []
    for user in range(60):
        for day in np.flatnonzero(rng.random(DAYS) < 0.06).tolist():
            pair = int(rng.integers(0, 30))
            usual = ["milk"] if user % 2 else []
            events.append(order(user, day, [*usual, f"cup{pair}", f"saucer{pair}", f"x{rng.integers(99)}"]))
    return snapshot.from_events(events)


def pairs(history: History, at_ms: int) -> Pairs:
    return repurchase.ask_at(Replay(history), *interactions(history), at_ms)


def learned(history: History) -> Repurchase | None:
    return repurchase.learn(Replay(history), *interactions(history))


def test_what_is_always_bought_is_foreseen(history: History) -> None:
    model = repurchase.fit([(pairs(history, SPLIT_MS - 90 * DAY_MS), HORIZONS_DAYS)])
    test = pairs(history, SPLIT_MS)
    p, y = model.p_within(test.x, 30.0), test.bought(30.0)
    assert metrics.auc(p, y) > 0.6  # all but the milk is chance
    assert metrics.ece(p, y) < 0.1
    milk = np.array([item == "milk" for item in test.items])
    assert p[milk].mean() > 2 * p[~milk].mean()


def test_permuted_answers_teach_nothing(history: History) -> None:
    early, test = pairs(history, SPLIT_MS - 90 * DAY_MS), pairs(history, SPLIT_MS)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(8):
        mixed = Pairs(early.users, early.items, early.x, rng.permutation(early.until_days), early.now_ms)
        p = repurchase.fit([(mixed, HORIZONS_DAYS)]).p_within(test.x, 30.0)
        found.append(metrics.auc(p, rng.permutation(test.bought(30.0))))
    assert np.mean(found) == pytest.approx(0.5, abs=0.03)


def test_the_future_changes_no_feature(history: History) -> None:
    whole, cut = pairs(history, SPLIT_MS), pairs(history.until(SPLIT_MS), SPLIT_MS)
    assert whole.items == cut.items
    np.testing.assert_array_equal(whole.x, cut.x)
    assert np.isinf(cut.until_days).all() and np.isfinite(whole.until_days).any()
    assert np.all(whole.until_days[np.isfinite(whole.until_days)] >= 0)


def test_reminders_come_from_the_past_alone_and_are_bought_as_often_as_they_say(history: History) -> None:
    """Through the worker's own desk: cutting the future off changes nothing of what was said before it."""
    past, _ = interactions(history)
    model, known = learned(history.until(SPLIT_MS)), repurchase.links_until(past, list(history.items), SPLIT_MS)
    assert model is not None and model.usual_days == links.order_gaps(past, SPLIT_MS).usual
    assert known.gap_days[known.ids.index("milk")] == pytest.approx(1 / 0.06, abs=2.0)
    models, cut_ms = WithoutEncoder(model, known), SPLIT_MS + 50 * DAY_MS
    whole = [one for one in reminders.served(history, SPLIT_MS, models, Policy()) if ms(one.as_of_ts) < cut_ms]
    cut = [one for one in reminders.served(history.until(cut_ms), SPLIT_MS, models, Policy()) if ms(one.as_of_ts) < cut_ms]
    assert {(one.reminder_id, one.state) for one in cut} <= {(one.reminder_id, one.state) for one in whole}
    assert len(whole) - len(cut) <= 5  # what was due between the last event and the cut
    due = [one for one in whole if one.state == "due"]
    bought = {one.reminder_id for one in reminders.served(history, SPLIT_MS, models, Policy()) if one.state == "bought"}
    assert min(ms(one.as_of_ts) for one in due) > SPLIT_MS and {one.item_id for one in due} == {"milk"}
    said, hits = sum(one.probability for one in due) / len(due), sum(one.reminder_id in bought for one in due) / len(due)
    assert said == pytest.approx(hits, abs=0.15)


def test_planted_periods_are_reminded_of_though_an_invoice_names_the_item_on_two_lines() -> None:
    """Half of the users buy coffee every 20 days, half every 50: the item's average fits nobody, their own intervals do, if
    two lines of an invoice, one event each and a minute apart, are one order."""
    events, rng = [], np.random.default_rng(6)
    for user in range(40):
        period = 50 if user % 2 else 20
        for day in range(int(rng.integers(0, period)), DAYS, period):
            for line in range(2):
                at = np.datetime64(START_MS + day * DAY_MS + line * 60_000, "ms").astype(str) + "Z"
                events.append(order(user, day, ["coffee"]) | {"messageId": f"{user}-{day}-{line}", "timestamp": at})
    history = snapshot.from_events(events)
    states = snapshot.replay(history).states
    assert {round(own_gap_days(states[f"u{user}"].items["coffee"]), 6) for user in range(40)} == {20.0, 50.0}
    found = evaluate_repurchase.evaluated(history, SPLIT_MS).comparison
    ours, average = found.models["clickwake"], found.models["item's average interval"]
    assert ours["reminders.precision"].low > 0.9 and ours["reminders.said"].value > 60
    assert average["reminders.precision"].high < 0.1
    assert {"due.recall@10", "due.ndcg@10", "due.hr@10", "due.precision"} <= ours.keys(), "asked as the read API answers too"
    assert ours["due.precision"].low > 0.5 and found.settings["due: something said"] > 60


def test_a_category_of_which_each_item_is_bought_once_is_due_by_its_planted_period() -> None:
    """Another tea every 24 days, and a mug at any time; whoever has one tea for good is asked for no category."""
    rng, events, teas = np.random.default_rng(8), [], iter(range(1_000))
    for user in range(30):
        for day in range(int(rng.integers(0, 24)), DAYS, 24):
            events.append(order(user, day, ["always" if user < 5 else f"tea{next(teas)}"]))
        for day in np.flatnonzero(rng.random(DAYS) < 0.01).tolist():
            events.append(order(user, day, [f"mug{rng.integers(200)}"]))
    bare = snapshot.from_events(events)
    items = {name: msgspec.structs.replace(item, category="mugs" if name.startswith("mug") else "teas")
             for name, item in bare.items.items()}  # fmt: skip
    history = History(bare.name, bare.events, items)
    past, number = interactions(history)
    model, known = learned(history.until(SPLIT_MS)), repurchase.links_until(past, list(items), SPLIT_MS)
    assert model is not None
    subject = due.of_categories(history, past, WithoutEncoder(model, known), Policy())
    found = due.answers(history, number, SPLIT_MS, {"due.categories": subject}, Policy(), "ours")["due.categories"]
    of_one_tea = [one for one in found if one.user in {number[f"u{user}"] for user in range(5)}]
    assert not any("teas" in one.ranked["ours"] for one in of_one_tea) and any("teas" in one.wanted for one in of_one_tea)
    others = [one for one in found if one not in of_one_tea]
    hits = ["teas" in one.wanted for one in others if "teas" in one.ranked["ours"]]
    base = np.mean(["teas" in one.wanted for one in others])
    assert len(hits) > 40 and np.mean(hits) > 0.85 and base < 0.7, "a window of 14 days in 24"
    models, _ = due.judged(found, "ours", "due.categories")
    said = [one for one in found if one.ranked["ours"]]
    by_hand = np.mean([np.mean([name in one.wanted for name in one.ranked["ours"]]) for one in said])
    assert models["ours"]["due.categories.precision"].value == pytest.approx(by_hand)
    assert {*models["ours"]} == {f"due.categories.{one}" for one in (*due.MEASURES, "precision")}


def test_what_is_due_comes_from_the_past_alone_and_rules_rank_what_they_say(history: History) -> None:
    known = repurchase.links_until(interactions(history)[0], list(history.items), SPLIT_MS)
    model = learned(history.until(SPLIT_MS))
    assert model is not None
    models = WithoutEncoder(model, known)

    def answers(some: History) -> list[due.Answers]:
        past, number = interactions(some)
        subjects = {"due": due.of_items(some, past, models, Policy())}
        return due.answers(some, number, SPLIT_MS, subjects, Policy(), "ours")["due"]

    whole = answers(history)
    cut_ms = SPLIT_MS + 28 * DAY_MS
    cut = answers(history.until(cut_ms))
    assert [one.ranked for one in cut] == [one.ranked for one in whole[: len(cut)]] and len(cut) >= 50
    first = [one.ranked["ours"][0] == "milk" for one in whole if "milk" in one.ranked["ours"]]
    assert len(first) > 50 and np.mean(first) > 0.9, "the rest is bought by chance"
    milk = next(one for one in whole if "milk" in one.wanted)
    assert milk.ranked[due.FREQUENT][0] == "milk" and {len(milk.ranked[name]) for name in (
        due.FREQUENT, due.INTERVAL, due.RECENT)} == {len(milk.ranked[due.RECENT])}  # fmt: skip


def test_asking_on_the_way_changes_nothing_of_what_the_replay_leaves(history: History) -> None:
    """Training replays once: rhythms are learned on the way, everything else from what is left."""
    replaying, (past, number) = Replay(history), interactions(history)
    model = repurchase.learn(replaying, past, number)
    asked, whole = replaying.finish(), snapshot.replay(history)
    assert model is not None and model == learned(history)
    assert asked.states == whole.states and asked.counts.counts == whole.counts.counts
    assert asked.moments == whole.moments and asked.touched == whole.touched
    for one, other in zip(snapshot.visit_arrays(asked.visits), snapshot.visit_arrays(whole.visits), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_short_history_teaches_no_rhythm(history: History) -> None:
    assert learned(history.until(START_MS + 80 * DAY_MS)) is None


def test_nothing_bought_again_is_said() -> None:
    none = Pairs(np.zeros(3, dtype=np.int64), ["a"] * 3, np.zeros((3, len(FEATURES)), np.float32), np.full(3, np.inf), 0)
    with pytest.raises(ValueError, match="of 3 pairs of user and item 0 were bought again"):
        repurchase.fit([(none, (30.0,))])


def test_clustered_measures_are_the_plain_ones_where_every_user_counts_once() -> None:
    rng = np.random.default_rng(1)
    p, y = np.round(rng.random(400), 2), (rng.random(400) < 0.3).astype(float)
    measures = clustered.weighted(p, y, np.arange(400) // 8, probability=True)
    found = measures(np.ones(400))
    assert found["auc"] == pytest.approx(metrics.auc(p, y))
    assert found["ap"] == pytest.approx(average_precision_score(y, p))
    assert found["brier"] == pytest.approx(metrics.brier(p, y))
    assert found["ece"] == pytest.approx(metrics.ece(p, y))
    half = np.r_[np.ones(200), np.zeros(200)]
    assert measures(half)["auc"] == pytest.approx(metrics.auc(p[:200], y[:200]))
    best = [y[at : at + 8][np.argsort(-p[at : at + 8], kind="stable")[:5]].mean() for at in range(0, 400, 8)]
    assert found["precision@5"] == pytest.approx(np.mean(best))


def test_the_evaluation_is_whole_and_finds_what_goes_together(history: History) -> None:
    found = evaluate_repurchase.evaluated(history, SPLIT_MS).comparison
    assert found.ahead["item's average interval"]["reminders.precision"].low > 0
    ours, popular = found.models["clickwake"], found.models[cross_sell.POPULARITY]
    assert {f"{days:g}d.{one}" for days in HORIZONS_DAYS for one in ("auc", "ap", "precision@5", "brier", "ece")} < set(ours)
    for task in cross_sell.RULES:
        assert ours[f"{task}.recall@10"].low > popular[f"{task}.recall@10"].high
    for measures in found.models.values():
        for one in measures.values():
            assert one.low <= one.high
    with pytest.raises(EmptyHistory, match="90 days are needed"):
        evaluate_repurchase.evaluated(history, START_MS + 10 * DAY_MS)
