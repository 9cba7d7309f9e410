"""What people think: which events are opinions and whose are taken, what is kept of an item, and when a change is said."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.simulate.world import World
from schemas.erasure import Erased, Erasure, subject
from schemas.opinions import Opinion, SatisfactionAlert
from stream.adapters.models.opinion_reader import Languages, Read
from stream.core.opinions import opinions
from stream.core.opinions.satisfaction import SEEN_MAX, Level, Place, Subject, fold
from stream.core.statistics.changes import Policy, mean_of, tilted
from stream.insights import Folded, Heard, Listener, Tracker, opinion
from tests.support.fakes import FakeRecord

AT = datetime(2026, 11, 1, tzinfo=UTC)
NOW_MS = 1_800_000_000_000
STARS = np.array([0.036, 0.066, 0.123, 0.216, 0.559])  # of Women's Clothing, 1 to 5


class Part(FakeRecord):
    """A record with a partition."""

    partition = 0


def event(ident: str = "m", name: str = "Product Reviewed", user: str = "u", **more: Any) -> dict[str, Any]:
    return {"messageId": ident, "type": "track", "event": name, "userId": user, "tenant": "shop",
            "timestamp": "2026-11-01T00:00:00Z",
            "properties": {"product_id": "mug", "rating": 2, **more.pop("properties", {})}, **more}  # fmt: skip


def heard(*events: dict[str, Any] | bytes, erased: Erased | None = None) -> tuple[list[Heard], Counter[str]]:
    listener = Listener(300_000, erased or Erased(), lambda tenant, item: {"mug": "Clay"}.get(item, ""))
    records = [Part(b"k", one if isinstance(one, bytes) else msgspec.json.encode(one), at, NOW_MS)
               for at, one in enumerate(events)]  # fmt: skip
    return listener.hear(records), listener.outcomes


@pytest.mark.parametrize(("name", "properties", "source", "text", "stars"), [
    ("Product Reviewed", {"rating": 4, "review_title": "Nice", "review_body": "Warm."}, "review", "Nice\nWarm.", 4.0),
    ("Product Reviewed", {"rating": 8, "rating_max": 10}, "review", "", 1 + 4 * 7 / 9),
    ("Survey Answered", {"score": 5, "comment": "so so"}, "survey", "so so", 3.0),
    ("Survey Answered", {"score": 12, "answer": "yes"}, "survey", "yes", None),
    ("Brand Mentioned", {"text": "Clay mugs!", "rating": 5}, "mention", "Clay mugs!", None),
    ("Support Ticket Created", {"subject": "Broken", "description": "in two"}, "ticket", "Broken\nin two", None),
])  # fmt: skip
def test_what_each_event_says(name: str, properties: dict[str, Any], source: str, text: str, stars: float | None) -> None:
    found = opinions.said(name, msgspec.json.encode(properties))
    assert found is not None and (found.source, found.text) == (source, text)
    assert found.stars == (None if stars is None else pytest.approx(stars))


@given(st.sampled_from(sorted(opinions.FORMS)), st.binary(max_size=200) | st.recursive(
    st.none() | st.floats() | st.text(max_size=9), lambda one: st.dictionaries(
        st.sampled_from(["rating", "rating_max", "score", "score_max", "review_body", "text", "brand"]), one), max_leaves=9,
).map(lambda one: msgspec.json.encode(one)))  # fmt: skip
def test_any_properties_say_something_or_nothing(name: str, raw: bytes) -> None:
    found = opinions.said(name, raw)
    assert found is None or ((found.text or found.stars is not None) and (found.stars is None or 1 <= found.stars <= 5))


def test_only_opinions_of_people_who_let_them_be_analysed_and_are_not_erased() -> None:
    erased = Erased()
    erased.note(subject(b"shop/gone"), Erasure(erasure_id="e", tenant="shop", requested_at=AT))
    found, outcomes = heard(
        event("a"), event("b", context={"consent": {"analytics": False}}), event("c", user="gone"),
        event("d", context={"consent": {"personalization": False}}), event("e", name="Product Viewed"), b"{",
        event("f", properties={"rating": 99}), event("g", timestamp="1999-01-01T00:00:00Z"), erased=erased)  # fmt: skip
    assert [one.event.message_id for one in found] == ["a", "d"]
    assert outcomes == {"opinion": 2, "no_analytics": 1, "erased": 1, "empty": 1, "rejected": 1}


def test_the_brand_is_the_events_else_the_catalogs_and_ids_are_derived() -> None:
    (one, other), _ = heard(event(), event("m2", properties={"brand": "Own"}))
    read = Read("en", 0.25, None, None, (), "", "")
    key, value = opinion(one, read)
    assert (key, value.brand) == (b"shop/Clay", "Clay") and opinion(other, read)[0] == b"shop/Own"
    assert opinion(one, read) == (key, value) and value.opinion_id != opinion(other, read)[1].opinion_id


def test_languages() -> None:
    languages = Languages()
    assert [languages.of(one) for one in ("The fabric is soft and it fits well", "质量很好，物流很快", "", "5/5", "👍👍",
            "Sehr schlechte Qualität, nie wieder")] == ["en", "zh", "und", "und", "und", "de"]  # fmt: skip


# ---- what is kept of an item


def run(levels: Sequence[int], subject: Subject | None = None, live: bool = True) -> list[tuple[int, Any]]:
    """(place, change) of each change said; level 0 to 4 of each opinion, one an hour."""
    kept, found = subject or Subject(), []
    for at, level in enumerate(levels):
        change = fold(kept, Place(0, at, f"o{at}", level / 4), at, Policy(), live=live)
        found += [(at, change)] if change is not None else []
    return found


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.data())
def test_folding_again_changes_nothing(levels: list[int], data: st.DataObject) -> None:
    once, twice = Subject(), Subject()
    run(levels, once)
    cut = data.draw(st.integers(0, len(levels)))
    run(levels[:cut], twice)
    twice = msgspec.msgpack.decode(msgspec.msgpack.encode(twice), type=Subject)  # as after a crash
    run(levels, twice)
    assert once == twice and once.opinions == len(levels) <= SEEN_MAX
    level = msgspec.msgpack.decode(msgspec.msgpack.encode(once), type=Level)
    assert (level.opinions, level.n, level.total) == (once.opinions, once.n, once.total)
    assert sum(once.levels) == once.n and once.total == pytest.approx(mean_of(once.levels) * once.n)


@given(st.lists(st.floats(0.01, 1), min_size=5, max_size=5), st.floats(0.2, 0.95))
def test_tilting_lowers_the_mean_to_what_is_asked(weights: list[float], share: float) -> None:
    shares = [one / sum(weights) for one in weights]
    wanted = mean_of(shares) * share
    found = tilted(shares, wanted)
    assert sum(found) == pytest.approx(1) and mean_of(found) == pytest.approx(wanted, abs=1e-3)


def test_false_alarms_are_as_rare_as_is_said_and_falls_are_found_where_they_are() -> None:
    """12 things with 300 opinions each that do not change, in three shapes; then a fall by 1.2 stars after 60 opinions."""
    rng = np.random.default_rng(3)
    shapes = (STARS, np.array([0.2, 0.05, 0.05, 0.1, 0.6]), np.full(5, 0.2))
    raised = sum(change.worse for shape in shapes for _ in range(12)
                 for _, change in run(rng.choice(5, 300, p=shape / shape.sum()).tolist()))  # fmt: skip
    assert raised <= 3 * 12 * 300 / Policy().opinions_per_false_alarm
    fallen = np.array(tilted((STARS / STARS.sum()).tolist(), 0.5))
    delays, errors = [], []
    for _ in range(20):
        levels = [*rng.choice(5, 60, p=STARS / STARS.sum()), *rng.choice(5, 150, p=fallen / fallen.sum())]
        found = [(at, change) for at, change in run(levels) if change.worse and at >= 60]
        delays.append(found[0][0] - 59 if found else 150)
        errors += [abs(found[0][1].since_ms - 60)] if found else []
    assert np.median(delays) <= 30 and np.mean(np.array(delays) < 150) >= 0.9
    assert np.median(errors) <= 6


def test_history_says_nothing_and_what_comes_after_is_judged_by_it() -> None:
    kept = Subject()
    assert run([4] * 40 + [0] * 20, kept, live=False) == [] and kept.changes >= 1 and not kept.raised
    found = [fold(kept, Place(0, at, f"live{at}", 1.0), at, Policy()) for at in range(60)]
    assert not any(found), "a rise after no fall that was said is not said"


def test_a_fall_is_cleared_by_a_rise() -> None:
    found = run([4] * 40 + [0] * 40 + [4] * 40)
    assert [change.worse for _, change in found] == [True, False]
    assert [change.number for _, change in found] == [1, 2] and found[1][1].since_ms == 80
    assert found[1][1].before < 0.2 and found[1][1].after == 1.0


# ---- the tracker


def say(at: int, stars: float, **more: Any) -> Opinion:
    blank = Opinion(
        opinion_id=f"o{at}", tenant="shop", user_id=f"u{at}", event_id=f"m{at}", source="review", lane="live",
        said_at=AT + timedelta(hours=at), item_id="mug", brand="Clay", language="en", satisfaction=(stars - 1) / 4,
        stars=stars, stars_read=None, p_satisfied=None, aspects=(), telling=f"said {at}", model_version="")  # fmt: skip
    return msgspec.structs.replace(blank, **more)


class Shelf:
    """A tracker, its topic, and what it wrote: the whole protocol without a broker."""

    def __init__(self, said: list[Opinion], erased: Erased | None = None) -> None:
        self.said, self.erased = said, erased or Erased()
        self.states: dict[bytes, bytes] = {}
        self.alerts: list[SatisfactionAlert] = []

    async def look_up(self, places: Sequence[Place]) -> list[Opinion]:
        return [self.said[one.offset] for one in places]

    def tracker(self) -> Tracker:
        found = Tracker(Policy(), self.erased, self.look_up)
        found.states.update(self.states)
        return found

    def records(self, begin: int, end: int) -> list[Part]:
        return [Part(b"shop/Clay", msgspec.json.encode(one), begin + at, NOW_MS)
                for at, one in enumerate(self.said[begin:end])]  # fmt: skip

    def take(self, tracker: Tracker, begin: int, end: int, written: int | None = None) -> Folded:
        """One batch; `written`: a crash after so many states."""
        folded = asyncio.run(tracker.fold(self.records(begin, end)))
        self.alerts += [one.alert for one in folded.alerts]
        self.states.update(list(folded.states.items())[:written])
        tracker.keep(folded)
        return folded


SAID = [say(at, 5.0 if at < 40 else 1.0) for at in range(60)]


def test_an_alert_quotes_the_most_telling_and_the_same_whatever_crashes() -> None:
    whole = Shelf(SAID)
    whole.take(whole.tracker(), 0, 60)
    assert [(one.about, one.name, one.state, one.number) for one in whole.alerts] == [
        ("item", "mug", "raised", 1), ("brand", "Clay", "raised", 1)]
    alert = whole.alerts[0]
    assert alert.changed_at == AT + timedelta(hours=40) and (alert.before, alert.after) == (1.0, 0.0)
    assert alert.evidence and all(one.sentence == f"said {one.opinion_id[1:]}" for one in alert.evidence)
    assert all(int(one.opinion_id[1:]) >= 40 for one in alert.evidence) and alert.opinions_after < 12
    broken = Shelf(SAID)
    for begin, end, written in ((0, 30, 0), (0, 30, 1), (0, 30, None), (30, 50, 1), (30, 60, None), (45, 60, None)):
        broken.take(broken.tracker(), begin, end, written)  # a new process each time
    assert broken.states == whole.states
    assert {one.alert_id: one for one in broken.alerts} == {one.alert_id: one for one in whole.alerts}


def test_tickets_and_what_nobody_can_tell_count_in_no_mean_and_history_raises_nothing() -> None:
    quiet = Shelf([say(30, 1.0, satisfaction=None)])
    assert quiet.take(quiet.tracker(), 0, 1).states == {}
    tickets = Shelf([say(at, 1.0, source="ticket") for at in range(30)])
    states = tickets.take(tickets.tracker(), 0, 30).states
    mug, clay = (msgspec.msgpack.decode(one, type=Subject) for one in states.values())
    assert (mug.opinions, mug.n, mug.total, sum(mug.tickets.days.values())) == (0, 0, 0.0, 30) and clay == mug
    history = Shelf([msgspec.structs.replace(one, lane="import") for one in SAID])
    assert history.take(history.tracker(), 0, 60).states and not history.alerts
    damaged = Shelf(SAID).tracker()
    asyncio.run(damaged.fold([Part(b"k", b"{", 0, NOW_MS)]))
    assert damaged.outcomes == {"undecodable": 1}


def test_an_erased_person_is_not_quoted() -> None:
    erased = Erased()
    for at in range(40, 60, 2):
        erased.note(subject(f"shop/u{at}".encode()),
                    Erasure(erasure_id="e", tenant="shop", requested_at=AT, suppress=True))  # fmt: skip
    shelf = Shelf(SAID, erased)
    shelf.take(shelf.tracker(), 0, 60)
    assert shelf.alerts and all(int(one.opinion_id[1:]) % 2 for one in shelf.alerts[0].evidence)


def test_the_planted_fall_is_named_with_its_day() -> None:
    """A whole simulated shop: the brand that goes bad is said to have fallen, within a week of when it did."""
    world = World(seed=7, shoppers=500, days=150, items=100)
    reviews = [one for one in world.history() if one.get("event") == "Product Reviewed"]
    raws = [msgspec.json.encode({**one, "lane": "live"}) for one in reviews]
    brands = {item.item_id: item.brand for item in world.items()}
    listener = Listener(300_000, Erased(), lambda tenant, item: brands[item])
    found = listener.hear([Part(b"k", raw, at, NOW_MS) for at, raw in enumerate(raws)])
    reads = [Read("en", ((one.said.stars or 1.0) - 1) / 4, None, None, (), one.said.text, "") for one in found]
    said = [opinion(one, read)[1] for one, read in zip(found, reads, strict=True)]
    shelf = Shelf(said)
    shelf.take(shelf.tracker(), 0, len(said))
    (fall,) = world.truth().falls
    brands_raised = [one for one in shelf.alerts if one.about == "brand" and one.state == "raised"]
    assert [one.name for one in brands_raised] == [fall.brand]
    away_days = abs(brands_raised[0].changed_at.timestamp() * 1000 - fall.from_ms) / 86_400_000
    assert away_days <= 7 and brands_raised[0].after < brands_raised[0].before - 0.2
