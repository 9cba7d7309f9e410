"""Fitting the mixture finds what was planted, links find what follows, and nothing that is learned sees the future."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from schemas.catalog import Item
from stream.core.ranking.blend import ITEM_FEATURES, PARTS, USER_FEATURES
from stream.core.user.state import DAY_MS
from training.evaluation.metrics import top
from training.history import snapshot
from training.history.snapshot import History, Replay
from training.panel.method import Past
from training.recommend import blend, links
from training.recommend.asking import Columns, Question, next_of, walk
from training.recommend.blend import Examples
from training.recommend.judging import Judge
from training.text.texts import Texts

START_MS = 1_700_000_000_000


def planted(part: str, questions: int = 256, candidates: int = 30) -> Examples:
    """What comes next is drawn from one part; the others are noise."""
    rng = np.random.default_rng(3)
    parts = rng.dirichlet(np.full(candidates, 0.3), (questions, len(PARTS)))
    parts = parts.transpose(0, 2, 1).astype(np.float32)  # (Q, C, K)
    chances = parts[:, :, PARTS.index(part)].astype(np.float64)
    wanted = np.zeros((questions, candidates), dtype=bool)
    for at in range(questions):
        wanted[at, rng.choice(candidates, p=chances[at] / chances[at].sum())] = True
    return Examples(
        parts, rng.normal(size=(questions, len(USER_FEATURES))).astype(np.float32),
        rng.normal(size=(questions, candidates, len(ITEM_FEATURES))).astype(np.float32),
        rng.random((questions, candidates)) < 0.3, np.ones((questions, candidates), np.float32), wanted,
    )  # fmt: skip


@pytest.mark.parametrize("part", ["encoder", "follows", "popular_60"])
def test_the_part_that_knows_gets_the_largest_share(part: str) -> None:
    fitted = blend.fit(planted(part), seed=0)
    shares = fitted.shares_of(np.zeros(len(USER_FEATURES), dtype=np.float32))
    assert shares.argmax() == PARTS.index(part) and shares.max() > 0.5


def test_an_item_that_is_boosted_in_the_past_is_boosted_after() -> None:
    data = planted("rules")
    lifted = data.item[..., 0] > 0.5  # only such items were ever wanted
    wanted = data.wanted & lifted
    kept = wanted.any(1)
    fitted = blend.fit(data._replace(wanted=wanted).take(np.flatnonzero(kept)), seed=0)
    assert (fitted.boosts[:, 1] > 0.5).all()


def test_the_same_seed_fits_the_same() -> None:
    data = planted("rules", questions=128)
    assert np.array_equal(blend.fit(data, seed=5).shares, blend.fit(data, seed=5).shares)


def ring(users: int = 60, items: int = 10, steps: int = 8) -> Past:
    """Each user walks round a ring of items, one a day."""
    rng = np.random.default_rng(1)
    rows = sorted(
        (START_MS + (first + step) * DAY_MS, user, (at + step) % items)
        for user, (first, at) in enumerate(zip(rng.integers(0, 20, users), rng.integers(0, items, users), strict=True))
        for step in range(steps)
    )
    ts_ms, number, item = np.array(rows).T
    return Past(number, item, ts_ms, np.ones(len(rows), np.int64), items)


def test_links_know_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "FOLLOWS_RIDGE", 1.0)  # 60 users are few
    past = ring()
    found = links.fit(past, [f"i{n}" for n in range(10)], int(past.ts_ms[-1]) + 1)
    columns, values, _ = found.follows.of(np.array([3]), np.ones(1, np.float32))
    assert columns[values.argmax()] == 4


def test_links_of_nobody_and_of_a_single_visit() -> None:
    nobody = Past(*np.zeros((4, 0), dtype=np.int64), 5)
    assert links.fit(nobody, list("abcde"), START_MS).ids == []
    once = Past(np.zeros(2, np.int64), np.array([1, 3]), np.full(2, START_MS), np.ones(2, np.int64), 5)
    found = links.fit(once, list("abcde"), START_MS + 1)
    assert found.ids == ["b", "d"] and not found.follows.values.any()


def event(number: int, user: str, day: float, item: str) -> dict[str, object]:
    at = datetime.fromtimestamp(START_MS / 1000 + day * 86_400, UTC)
    return {"messageId": f"m{number}", "type": "track", "event": "Product Viewed", "tenant": "t", "userId": user,
            "timestamp": at, "properties": {"product_id": item}}  # fmt: skip


def shop(permuted: bool) -> History:
    """20 days of 30 users; with `permuted` everything after day 12 happens to other users and items."""
    rng = np.random.default_rng(2)
    rows = [(day + float(rng.random()), user, int(rng.integers(0, 12)) if day < 10 else int(rng.integers(0, 15)))
            for day in range(20) for user in range(30)]  # fmt: skip
    after = [at for at, row in enumerate(rows) if row[0] >= 12]
    order = np.random.default_rng(9).permutation(after) if permuted else after
    moved = {at: rows[other] for at, other in zip(after, order, strict=True)}
    rows = [(day, *moved[at][1:]) if at in moved else (day, user, item) for at, (day, user, item) in enumerate(rows)]
    events = [event(at, f"u{user}", day, f"i{item:02d}") for at, (day, user, item) in enumerate(rows)]
    return snapshot.from_events(events, [Item(item_id="i99", tenant="t", title="never touched")])


SPLIT_MS = START_MS + 12 * DAY_MS


def test_what_comes_after_the_split_changes_nothing_before_it() -> None:
    one, other = shop(False), shop(True)
    assert [event.ts_ms for event in one.events] == [event.ts_ms for event in other.events]
    past, again = one.until(SPLIT_MS), other.until(SPLIT_MS)
    assert list(past.items) == list(again.items) and "i99" in past.items
    assert set(past.items) - {"i99"} == {touch.properties.product_id for touch in past.events}
    fitted = [links.fit(snapshot.interactions(whole, SPLIT_MS)[0], list(whole.items), SPLIT_MS) for whole in (past, again)]
    assert np.array_equal(fitted[0].follows.values, fitted[1].follows.values)
    replays = [Replay(whole) for whole in (one, other)]
    for replay in replays:
        replay.advance(SPLIT_MS)
    assert replays[0].snapshot.states == replays[1].snapshot.states
    assert replays[0].snapshot.counts.counts == replays[1].snapshot.counts.counts


def test_a_question_knows_what_was_before_it_and_wants_only_what_was_known() -> None:
    history = shop(False)
    replay, columns = Replay(history), Columns(history)
    replay.advance(SPLIT_MS)
    for question in next_of(replay, columns, SPLIT_MS, history.to_ms + 1, users_max=50):
        assert question.now_ms == SPLIT_MS and question.state.last_ts_ms < SPLIT_MS
        assert columns.known(SPLIT_MS)[question.wanted].all()
    asked = 0
    for question in walk(replay, columns, SPLIT_MS, history.to_ms + 1, questions_max=10_000):
        assert question.state.last_ts_ms < question.now_ms and columns.known(question.now_ms)[question.wanted].all()
        asked += 1
    assert asked > 200


def test_ties_are_pessimistic() -> None:
    allowed = np.array([True, False, True, True])
    assert top(np.zeros(4, dtype=np.float32), allowed, np.array([2])).tolist() == [0, 3, 2]


class Oracle:
    """Knows the answer."""

    def catch_up(self, changed: object, now_ms: int) -> None:
        pass

    def scores(self, questions: list[Question]) -> np.ndarray:
        found = np.zeros((len(questions), self.size), dtype=np.float32)
        for at, question in enumerate(questions):
            found[at, question.wanted] = 1.0
        return found

    def __init__(self, size: int) -> None:
        self.size = size


def test_who_knows_the_answer_is_judged_perfect() -> None:
    history = shop(False)
    replay, columns = Replay(history), Columns(history)
    replay.advance(SPLIT_MS)
    past, _ = snapshot.interactions(history, SPLIT_MS)
    judge = Judge(columns, np.bincount(past.items, minlength=past.n_items), replay.snapshot.counts)
    asked = next_of(replay, columns, SPLIT_MS, history.to_ms + 1, users_max=50)
    values = judge.judge({"oracle": Oracle(len(history.items))}, asked, together=True)["oracle"].values()
    exposure = values.pop("exposure")
    assert all((one == 1.0).all() for of in values.values() for one in of.values()) and {"", "new"} <= set(values)
    groups = [len(of["hr@10"]) for task, of in values.items() if task.startswith("users-")]
    assert sum(groups) == len(asked) == len(exposure["tail_wanted"])
    for question, shown, wanted in zip(asked, exposure["tail_shown@10"], exposure["tail_wanted"], strict=True):
        assert wanted == judge.tail[question.wanted].mean() and 0 <= shown <= 1


def test_texts_are_found_by_id() -> None:
    texts = Texts.named("s", ["a", "b"], np.eye(2, 3, dtype=np.float32))
    assert texts.of(["b", "x", "a"]).tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]
    assert not texts.blank().of(["a"]).any()
