"""Laws of consent to advertising: what was said last counts, in whatever order and however often it is heard; joining
histories is commutative; and somebody who reads the topic of refusals knows what the states say."""

from __future__ import annotations

import asyncio
from functools import reduce
from itertools import pairwise
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.events import Event
from stream.core.user import identity
from stream.core.user.fold import fold
from stream.core.user.state import NOTHING_STATED, Stated, UserState
from stream.partition import NOBODY, unpack
from tests.support.fakes import T0_MS, event
from tests.unit.test_personalize import EVENTS, IDENTITY, Bench

said = st.builds(Stated, st.booleans(), st.integers(1, 9), st.booleans()) | st.just(NOTHING_STATED)
Step = dict[str, Any] | bytes | None
CLOSE = b"close"
consents = st.none() | st.fixed_dictionaries({}, optional={
    "ads": st.none() | st.booleans(), "assumed": st.booleans(), "personalization": st.none() | st.booleans()})  # fmt: skip


def one(number: int, at: int, consent: dict[str, object] | None, **more: Any) -> dict[str, Any]:
    return event(ts_ms=T0_MS + at, id=f"m{number}", context=None if consent is None else {"consent": consent}, **more)


@given(said, said, said)
def test_the_greatest_of_statements_stands(a: Stated, b: Stated, c: Stated) -> None:
    assert max(a, b) == max(b, a) and max(a, max(b, c)) == max(max(a, b), c) and max(a, a) == a
    assert max(a, NOTHING_STATED) == a, "to say nothing is no refusal"
    if a.own == b.own and a.ts_ms != b.ts_ms:
        assert max(a, b) == (a if a.ts_ms > b.ts_ms else b), "the later one"
    if a.own > b.own:
        assert max(a, b) == a, "what is assumed never overrules what was said"


@given(st.lists(st.tuples(st.integers(0, 400), consents), max_size=300), st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_neither_order_nor_repetition_nor_lateness_matters(
    rows: list[tuple[int, dict[str, object] | None]], random: object
) -> None:
    """Beyond the remembered ids too, where events count as late or as duplicates."""
    events = [msgspec.convert(one(number, at * 1000, consent), Event) for number, (at, consent) in enumerate(rows)]
    shuffled = [*events, *events[::2]]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    found = []
    for several in (events, shuffled):
        state = UserState()
        for each in several:
            fold(state, each, T0_MS + 400_000, 60_000)
        found.append(state.ads)
    spoken = [Stated(not of.assumed, each.ts_ms, not of.ads) for each in events
              if (of := each.context.consent) is not None and of.ads is not None]  # fmt: skip
    assert found[0] == found[1] == max(spoken, default=NOTHING_STATED)


@given(said, st.lists(said, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_joining_histories_is_commutative_and_repeatable(own: Stated, others: list[Stated], random: object) -> None:
    answers = [identity.Answer("t", f"a{number}", "u", (), ads) for number, ads in enumerate(others)]
    shuffled = [*answers, *answers[:2]]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    states = [UserState(ads=own), UserState(ads=own)]
    for state, several in zip(states, (answers, shuffled), strict=True):
        for answer in several:
            identity.link(state, answer)
    assert states[0].ads == states[1].ads == reduce(max, others, own)


@given(said, st.lists(st.tuples(st.integers(1, 9), st.sampled_from("uvw")), max_size=3, unique_by=lambda row: row[1]))
def test_of_a_shared_device_one_user_at_most_gets_what_was_said_there(ads: Stated, claims: list[tuple[int, str]]) -> None:
    claims.sort()
    got = {answer.user: answer.ads for answer in identity.answers(UserState(ads=ads, claims=claims), "t", "x")}
    whose = [user for (after, _), (until, user) in pairwise([(-1, ""), *claims]) if after < ads.ts_ms <= until]
    assert [user for user, told in got.items() if told != NOTHING_STATED] == (whose[:1] if ads.ts_ms else [])


@st.composite
def lives(draw: st.DrawFn) -> list[Step]:
    """What happens to a user and a device: events that say this or that, both ids at once, erasures, and crashes (None)."""
    steps: list[Step] = []
    for number in range(draw(st.integers(1, 14))):
        what = draw(st.sampled_from(["user", "user", "device", "both", "erase", "crash", "close"]))
        at, consent = draw(st.integers(0, 20)) * 1000, draw(consents)
        if what == "erase":
            steps.append(identity.encode(identity.Erase("t", draw(st.sampled_from(["u", "d"])))))
        elif what in ("crash", "close"):
            steps.append(None if what == "crash" else CLOSE)
        elif what == "device":
            steps.append(one(number, at, consent, user="", userId=None, anonymousId="d"))
        else:
            steps.append(one(number, at, consent, **({"anonymousId": "d"} if what == "both" else {})))
    return steps


@given(lives())
@settings(max_examples=60)
def test_who_reads_the_topic_of_refusals_knows_what_the_states_say(steps: list[Step]) -> None:
    asyncio.run(_live(steps))


async def _live(steps: list[Step]) -> None:
    bench, unwritten, heard = Bench(lateness_max_ms=5_000), list[dict[str, Any] | bytes](), 0

    async def feed(what: dict[str, Any] | bytes) -> None:
        await bench.feed(what, source=IDENTITY if isinstance(what, bytes) else EVENTS)

    async def close() -> None:
        nonlocal heard
        while new := [one.value for topic, _, one in bench.outputs.sent if topic == "identity" and one.value][heard:]:
            heard += len(new)
            await bench.feed(*new, source=IDENTITY)
        await bench.close()
        unwritten.clear()

    for step in steps:
        if step is None:  # what was not written is read again, by a process that knows what the store says
            bench.part = bench.opened(bench.part.counts)
            for one in unwritten:
                await feed(one)
        elif step == CLOSE:
            await close()
        else:
            unwritten.append(step)
            await feed(step)
    await close()
    refusing = {one.key: one.value is not None for topic, _, one in bench.outputs.sent if topic == "ads-refusals"}
    for key in (b"t/u", b"t/d"):
        raw = bench.store.values.get(key)
        state = unpack(raw) if raw else NOBODY
        assert refusing.get(key, False) == state.ads.refused
