"""The mixture: what its numbers mean, how it splits, and that what leaves as bytes comes back."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.catalog import Item
from stream.core.ranking import links
from stream.core.ranking.blend import ITEM_FEATURES, PARTS, USER_FEATURES, Blend
from stream.core.ranking.counts import CountsPolicy, ItemCount, PartitionCounts
from stream.core.ranking.index import ItemIndex
from stream.core.ranking.links import Links, Weights
from stream.core.ranking.recommend import Rules, Scores, explain, rank, score
from stream.core.user.featurize import Float32, batch, sequence
from stream.core.user.state import DAY_MS, ItemStat, Kind, Touch, UserState

NOW_MS = 1_750_000_000_000
N = 8
LINKS = Links(
    [f"i{n}" for n in range(N)], np.linspace(-3, -1, N, dtype=np.float32),
    Weights(np.roll(np.arange(N), -1).astype(np.int32)[:, None], np.ones((N, 1), np.float32)),  # i0 → i1 → i2 …
    links.no_weights(N), links.no_weights(N),
)  # fmt: skip


def index(linked: Links = LINKS) -> ItemIndex:
    """Eight items with vectors, counts and rules."""
    made = ItemIndex(4, CountsPolicy(), linked)
    rng = np.random.default_rng(0)
    for n in range(N):
        made.put(Item(item_id=f"i{n}", tenant="t"), rng.normal(size=4).astype(np.float32))
        made.set_counts(f"i{n}", 0, ItemCount(popularity=float(n + 1), ts_ms=NOW_MS, successors={f"i{(n + 3) % N}": 1.0},
                                              rules_ts_ms=NOW_MS, recent=1.0, lasting=9.0))  # fmt: skip
    return made


def user(*items: int) -> UserState:
    """Touched these items, one a day, the last one now."""
    times = [NOW_MS - (len(items) - 1 - at) * DAY_MS for at in range(len(items))]
    ring = [Touch(ts, f"e{at}", f"i{item}", Kind.VIEW, 0.0) for at, (ts, item) in enumerate(zip(times, items, strict=True))]
    stats = {touch.item_id: ItemStat(1, 0, touch.ts_ms, 0) for touch in ring}
    return UserState(ring=ring, items=stats, days=[ts // DAY_MS for ts in times], last_ts_ms=NOW_MS)


def asked(state: UserState, blend: Blend, made: ItemIndex | None = None) -> tuple[Scores, Float32, ItemIndex]:
    made = made or index()
    sequences = [sequence(state, NOW_MS, 50)]
    arrays = batch(sequences, made, [NOW_MS], 50)
    weights = arrays["mask"] / np.maximum(arrays["mask"].sum(), 1)
    users = np.einsum("bl,bld->bd", weights, arrays["items"]).astype(np.float32)
    return score(users, [state], sequences, made, blend, [NOW_MS])[0], weights[0].astype(np.float32), made


EVEN = Blend.from_manifest(dict.fromkeys(PARTS, 0.0))


def test_names_and_numbers_are_inverse() -> None:
    rng = np.random.default_rng(1)
    made = Blend(rng.normal(size=(len(PARTS), 1 + len(USER_FEATURES))).round(3).astype(np.float32),
                 rng.normal(size=(2, 1 + len(ITEM_FEATURES))).round(3).astype(np.float32))  # fmt: skip
    again = Blend.from_manifest(made.named())
    assert np.array_equal(again.shares, made.shares) and np.array_equal(again.boosts, made.boosts)


@pytest.mark.parametrize("wrong", [{"sales": 1.0}, {"rules.price": 1.0}, {"encoder": float("nan")}, {"new": 1e9}])
def test_what_nobody_knows_is_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(msgspec.ValidationError, match=next(iter(wrong))):
        Blend.from_manifest(wrong)


@given(st.lists(st.floats(-5, 5, width=32), min_size=len(USER_FEATURES), max_size=len(USER_FEATURES)))
def test_shares_are_a_distribution(features: list[float]) -> None:
    rng = np.random.default_rng(2)
    made = Blend(rng.normal(size=EVEN.shares.shape).astype(np.float32), EVEN.boosts)
    assert made.shares_of(np.array(features, np.float32)).sum() == pytest.approx(1, abs=1e-5)
    assert made.only("rules").shares_of(np.array(features, np.float32))[PARTS.index("rules")] == pytest.approx(1)


@settings(deadline=None)
@given(st.lists(st.integers(0, N - 1), min_size=1, max_size=12))
def test_scores_split_exactly_by_part_and_reasons_never_exceed_the_whole(items: list[int]) -> None:
    boosted = Blend.from_manifest(EVEN.named() | {"known": 0.7, "new.level": -0.2})
    scores, weights, made = asked(user(*items), boosted)
    rows = list(range(N))
    assert scores.by_part(rows).sum(axis=0) == pytest.approx(scores.total, rel=1e-4)
    one = sequence(user(*items), NOW_MS, 50)
    shown = explain(rows, scores, one, weights, made)
    assert sum(item.score for item in shown) == pytest.approx(1, abs=1e-5)
    for item in shown:
        assert sum(reason.share for reason in item.reasons) <= 1.001
        assert all(reason.share >= 0.001 for reason in item.reasons)


def test_every_part_alone_ranks_by_what_it_is_named_for() -> None:
    state = user(5, 2)
    best = {part: int(asked(state, EVEN.only(part))[0].total.argmax()) for part in PARTS}
    assert best["again_7"] == best["again_log"] == 2  # the newer of the two
    assert best["follows"] == 3 and best["rules"] == 5 and best["popular_14"] == N - 1
    assert asked(state, EVEN.only("together"))[0].total.max() < 1e-20  # nothing is linked so


def test_a_link_is_explained_by_the_event_that_caused_it() -> None:
    state = user(5, 2)
    scores, weights, made = asked(state, EVEN.only("follows"))
    (shown,) = explain([6], scores, sequence(state, NOW_MS, 50), weights, made)
    assert [(reason.item_id, reason.share) for reason in shown.reasons] == [("i5", 1.0)] and shown.source == "links"


def test_items_the_links_do_not_know_and_links_the_index_does_not_know_are_left_out() -> None:
    made = index(LINKS._replace(ids=[f"x{n}" for n in range(N)]))
    assert asked(user(1), EVEN.only("follows"), made)[0].total.max() < 1e-20
    made.row("x1")
    made.row("x2")
    state = user(1)
    state.items["x1"] = ItemStat(1, 0, NOW_MS, 0)
    scores = asked(state, EVEN.only("follows"), made)[0]
    assert scores.total.argmax() == made.row_of["x2"] and (scores.total > 1e-20).sum() == 1


def test_nobody_known_gets_what_is_popular() -> None:
    scores, _, made = asked(UserState(last_ts_ms=NOW_MS), Blend.from_manifest({}))
    assert rank(scores.total, UserState(), made, Rules(top_n=3, category_cap=0)) == [7, 6, 5]


def test_popularity_outlives_the_epoch_it_began_in() -> None:
    made = ItemIndex(4, CountsPolicy())
    long_ago = NOW_MS - 20 * 365 * DAY_MS
    made.set_counts("old", 0, ItemCount(popularity=9.0, ts_ms=long_ago, recent=9.0, lasting=9.0))
    for item, weight in (("a", 1.0), ("b", 2.0)):
        made.set_counts(item, 0, ItemCount(popularity=weight, ts_ms=NOW_MS, recent=weight, lasting=weight))
    assert made.popularity(NOW_MS) == pytest.approx(np.array([[0.0] * 3, [1.0] * 3, [2.0] * 3]), abs=1e-6)


def test_three_popularities_decay_by_their_own_half_lives() -> None:
    counts = PartitionCounts(CountsPolicy())
    for day, kind in ((0, Kind.VIEW), (3, Kind.VIEW)):
        counts.observe("t", Touch(NOW_MS + day * DAY_MS, f"e{day}", "a", kind, 0.0), [], day, {})
    made = ItemIndex(4, counts.policy)
    made.set_counts("a", 0, counts.counts["t/a"])
    expected = [1 + 2 ** (-3 / days) for days in counts.policy.half_lives_days]
    assert made.popularity(NOW_MS + 3 * DAY_MS)[0] == pytest.approx(expected, rel=1e-5)


def test_links_come_back_from_bytes() -> None:
    again = links.from_bytes(links.to_bytes(LINKS))
    assert again.ids == LINKS.ids and np.array_equal(again.follows.columns, LINKS.follows.columns)
    assert np.allclose(again.repeat, LINKS.repeat)
