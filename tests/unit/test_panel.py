"""The panel of recommenders: each finds what was planted for it, answers everybody, and is the same twice."""

from __future__ import annotations

import numpy as np
import pytest

from stream.core.user.state import DAY_MS, Kind
from training.panel.method import Asked, Method, Past
from training.panel.roster import ROSTER, panel
from training.panel.v_sknn import VSknn
from training.panel.validation import held_out

HOUR_MS = 3_600_000
N_ITEMS = 40
LIVE = {"popularity", "popularity-7", "popularity-14", "popularity-30", "personal-frequency", "sequence-rules"}
NET = ("sasrec", "sasrec-softmax", "bert4rec")
COLLABORATIVE = ("item-knn", "v-sknn", "ease", "tifu-knn")
Row = tuple[int, int, int]  # user, item, ts_ms


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that learn small data in as many steps as it takes, with nothing held out."""
    for name, value in {"WIDTH": 32, "LAYERS": 1, "DROPOUT": 0.0, "STEPS_MIN": 600, "EPOCHS_MAX": 1}.items():
        monkeypatch.setattr(f"training.panel.transformer.{name}", value)
    monkeypatch.setattr("training.panel.transformer.held_out", lambda past, seed: None)


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks stop after a few steps, for what does not depend on how well they learn."""
    monkeypatch.setattr("training.panel.transformer.STEPS_MIN", 10)
    monkeypatch.setattr("training.panel.transformer.EPOCHS_MAX", 10)
    monkeypatch.setattr("training.panel.transformer.CHECK_STEPS_MIN", 5)


def past_of(rows: list[Row]) -> Past:
    users, items, ts_ms = np.array(sorted(rows, key=lambda row: row[2]), dtype=np.int64).reshape(-1, 3).T.copy()
    return Past(users, items, ts_ms, np.full(len(users), int(Kind.VIEW), dtype=np.int64), N_ITEMS)


def asked(user: int, *touches: tuple[int, int], now_ms: int) -> Asked:
    items, ts_ms = np.array(touches, dtype=np.int64).reshape(-1, 2).T.copy()
    return Asked(user, items, ts_ms, now_ms)


def fitted(name: str, past: Past, seed: int = 0) -> Method:
    (method,) = panel([name])
    method.fit(past, seed=seed, budget_s=60.0, threads=1)
    return method


def best(method: Method, question: Asked) -> int:
    return int(np.argmax(method.score([question])[0]))


def noise(seed: int = 0, users: int = 60, days: int = 60) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [
        (user, int(rng.integers(N_ITEMS)), int(DAY_MS * rng.uniform(1, days))) for user in range(users) for _ in range(8)
    ]  # fmt: skip


def followed(users: int = 600) -> list[Row]:
    """Item i is followed by item i + 1; users walk a short way round the ring of items, from anywhere and at any time."""
    rng = np.random.default_rng(1)
    rows = []
    for user in range(users):
        first, start = int(rng.integers(N_ITEMS)), float(rng.uniform(1, 60))
        rows += [(user, (first + step) % N_ITEMS, int(DAY_MS * (start + step))) for step in range(int(rng.integers(2, 5)))]
    return rows


def in_groups(users: int = 120) -> list[Row]:
    """A user keeps to one group of five items: 0-4, 5-9 …"""
    rng = np.random.default_rng(2)
    rows = []
    for user in range(users):
        start = int(DAY_MS * rng.uniform(1, 50))
        for visit in range(3):
            for item in rng.choice(5, 3, replace=False):
                rows.append((user, 5 * (user % 8) + int(item), start + visit * DAY_MS))
    return rows


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["sequence-rules", *NET])
def test_what_always_follows_is_foreseen(name: str) -> None:
    past = past_of(followed())
    method, now_ms = fitted(name, past), past.end_ms + HOUR_MS
    walks = [[((first + step) % N_ITEMS, past.end_ms + step) for step in range(3)] for first in range(N_ITEMS)]
    hits = sum(best(method, asked(-1, *one, now_ms=now_ms)) == (one[-1][0] + 1) % N_ITEMS for one in walks)
    assert hits >= 0.75 * N_ITEMS  # one negative a positive leaves neighbours on the ring close together


@pytest.mark.parametrize("name", COLLABORATIVE)
def test_what_goes_together_is_recommended_together(name: str) -> None:
    past = past_of(in_groups(2_600 if name == "tifu-knn" else 120))  # whose neighbours are 300
    method = fitted(name, past)
    for group in range(8):
        question = asked(-1, (5 * group, past.end_ms - 2), (5 * group + 1, past.end_ms - 1), now_ms=past.end_ms)
        others = np.setdiff1d(np.arange(N_ITEMS), question.items)
        scores = method.score([question])[0]
        best_other = set(others[np.argsort(-scores[others])[:3]].tolist())
        assert best_other == {5 * group + 2, 5 * group + 3, 5 * group + 4}


@pytest.mark.parametrize("name", ["personal-frequency", "tifu-knn"])
def test_a_favourite_is_recommended_again(name: str) -> None:
    past = past_of([*noise(), *((0, 7, DAY_MS * day) for day in range(1, 50))])
    mine = [(int(item), int(ts_ms)) for user, item, ts_ms, _ in zip(*past[:4], strict=True) if user == 0]
    assert best(fitted(name, past), asked(0, *mine, now_ms=past.end_ms)) == 7


def test_an_item_on_two_lines_of_an_order_was_touched_once() -> None:
    method = fitted("personal-frequency", past_of(noise()))
    assert best(method, asked(-1, (3, 10), (3, 10), (3, 10), (4, 10), (4, 20), now_ms=30)) == 4


@pytest.mark.parametrize(
    ("name", "wanted"), [("popularity", 1), ("popularity-30", 2), ("popularity-14", 3), ("popularity-7", 4)]
)
def test_popularity_is_that_of_its_window(name: str, wanted: int) -> None:
    ages = {1: (90, 80), 2: (29, 40), 3: (13, 20), 4: (6, 10)}  # item → days ago, touches
    rows = [(user, item, DAY_MS * (100 - days) + user) for item, (days, touches) in ages.items() for user in range(touches)]
    method = fitted(name, past_of(rows))
    assert best(method, asked(-1, now_ms=100 * DAY_MS)) == wanted
    assert method.score([asked(-1, now_ms=500 * DAY_MS)]).any() == (name == "popularity")


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("name", ROSTER)
def test_everybody_is_answered_and_somebody_new_with_what_is_popular(name: str) -> None:
    past = past_of([*noise(), *((user, 9, DAY_MS * 59 + user) for user in range(60))])
    method = fitted(name, past)
    nobody, known, unheard = ((-1,), (3, (5, DAY_MS)), (900, (1, 1)))
    scores = method.score([asked(*one, now_ms=past.end_ms) for one in (nobody, known, unheard)])
    assert scores.shape == (3, N_ITEMS)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    assert scores[0].argmax() == 9
    assert method.score([]).shape == (0, N_ITEMS)


@pytest.mark.parametrize("name", ROSTER)
@pytest.mark.parametrize("users", [0, 1, 3])
def test_hardly_any_past_is_enough(name: str, users: int) -> None:
    method = fitted(name, past_of([(user, 1, DAY_MS) for user in range(users)]))
    scores = method.score([asked(0, (1, DAY_MS), now_ms=2 * DAY_MS), asked(-1, now_ms=2 * DAY_MS)])
    assert np.isfinite(scores).all()


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("name", ROSTER)
def test_the_same_seed_gives_the_same_answers(name: str) -> None:
    past = past_of(in_groups(60))
    question = asked(0, (0, past.end_ms - 2), (1, past.end_ms - 1), now_ms=past.end_ms)
    first, second = (fitted(name, past, seed=3).score([question]) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("name", ROSTER)
def test_live_methods_learn_from_later_events_and_frozen_ones_do_not(name: str) -> None:
    past = past_of(noise())
    method = fitted(name, past)
    question = asked(-1, (5, past.end_ms), now_ms=past.end_ms + DAY_MS)
    before = method.score([question])
    for at in range(50):
        method.observe(100 + at, 5, past.end_ms + 2 * at, Kind.VIEW)
        method.observe(100 + at, 33, past.end_ms + 2 * at + 1, Kind.VIEW)
    after = method.score([question])
    assert np.array_equal(before, after) == (name not in LIVE)
    if name in LIVE:
        assert np.argmax(np.where(np.arange(N_ITEMS) == 5, -np.inf, after[0])) == 33


def test_a_later_event_of_nobody_follows_nothing() -> None:
    past = past_of(noise())
    method = fitted("sequence-rules", past)
    for at in range(50):
        method.observe(-1, (5, 33)[at % 2], past.end_ms + at, Kind.VIEW)
    assert best(method, asked(-1, (5, past.end_ms), now_ms=past.end_ms + DAY_MS)) != 33


@pytest.mark.parametrize("name", ["sequence-rules", "item-knn"])
def test_what_went_with_an_item_lately_beats_what_went_with_it_long_ago(name: str) -> None:
    rows = []
    for user in range(20):
        rows += [(user, 0, DAY_MS * 10 + user), (user, 1, DAY_MS * 10 + HOUR_MS + user)]
        rows += [(100 + user, 0, DAY_MS * 600 + user), (100 + user, 2, DAY_MS * 600 + HOUR_MS + user)]
    question = asked(-1, (0, DAY_MS * 600), now_ms=DAY_MS * 601)
    scores = fitted(name, past_of(rows)).score([question])[0]
    assert scores[2] > scores[1] > scores[3]


@pytest.mark.parametrize("name", ["item-knn", "tifu-knn", "v-sknn"])
def test_of_the_users_own_items_the_newer_count_more(name: str) -> None:
    past = past_of(in_groups())
    old, new = [(0, DAY_MS * 10), (1, DAY_MS * 10)], [(5, DAY_MS * 58), (6, DAY_MS * 58)]
    scores = fitted(name, past).score([asked(-1, *old, *new, now_ms=DAY_MS * 60)])[0]
    assert scores[[5, 6]].min() > scores[[0, 1]].max()


def test_a_user_is_no_neighbour_of_the_own() -> None:
    past = past_of([(user, item, DAY_MS * (1 + user)) for user in range(30) for item in (user % N_ITEMS, 39)])
    mine = ((3, DAY_MS * 4), (39, DAY_MS * 4))
    method = fitted("tifu-knn", past)
    known, stranger = method.score([asked(3, *mine, now_ms=past.end_ms), asked(-1, *mine, now_ms=past.end_ms)])
    assert stranger[3] / stranger[39] > known[3] / known[39]


def test_visits_end_with_six_hours_of_silence() -> None:
    rows = [(0, 1, 0), (0, 2, HOUR_MS), (0, 3, 8 * HOUR_MS), (1, 1, HOUR_MS)]
    method = VSknn()
    method.fit(past_of(rows), seed=0, budget_s=10.0, threads=1)
    assert sorted(tuple(row.indices.tolist()) for row in method._visits) == [(1,), (1, 2), (3,)]


def test_validation_is_the_last_tenth_and_asks_those_who_were_known() -> None:
    rows = [(user, user, DAY_MS * (1 + user)) for user in range(30)]  # 27 before the cut, 3 new users after it
    assert held_out(past_of(rows)) is None
    held = held_out(past_of([*rows[:27], (1, 30, DAY_MS * 50), (1, 31, DAY_MS * 50), (2, 32, DAY_MS * 51)]))
    assert held is not None
    assert [(one.user, one.items.tolist()) for one in held.asked] == [(1, [1]), (2, [2])]
    assert [one.tolist() for one in held.wanted] == [[30, 31], [32]]
    assert held.earlier.end_ms == DAY_MS * 27
    ideal = np.zeros((2, N_ITEMS), dtype=np.float32)
    ideal[0, [30, 31]] = ideal[1, 32] = 1.0
    assert held.quality(ideal) == pytest.approx(4.0)


def test_a_larger_catalog_than_ease_can_invert_is_cut_to_the_most_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.panel.ease.ITEMS_MAX", 3)
    past = past_of([(user, item, DAY_MS + item) for item in range(5) for user in range(10 * (item + 1))])
    scores = fitted("ease", past).score([asked(-1, (4, 1), now_ms=past.end_ms)])[0]
    assert set(np.argsort(-np.abs(scores))[:2].tolist()) <= {2, 3, 4}
    assert np.abs(scores[[0, 1]]).max() <= 1e-6


@pytest.mark.usefixtures("small")
def test_a_large_catalog_is_learned_from_drawn_negatives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.panel.transformer.FULL_SOFTMAX_ITEMS_MAX", 10)
    monkeypatch.setattr("training.panel.transformer.NEGATIVES", 20)
    test_what_always_follows_is_foreseen("sasrec-softmax")


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no method slim; known are popularity"):
        panel(["ease", "slim"])
