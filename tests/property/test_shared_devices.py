"""Laws of a device that several people sign in on: however late a claim comes, nobody keeps what was done and said in the
time of another, and the stream and a batch agree."""

from __future__ import annotations

from itertools import pairwise

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.events import Event
from stream.core.user import identity
from stream.core.user.fold import fold
from stream.core.user.state import UserState
from stream.core.user.traits import Names, described
from tests.support.fakes import DAY_MS, T0_MS, event

NAMES = Names(frozenset({"a", "b"}))
USERS = "uvw"
guests = st.lists(st.tuples(st.integers(0, 9), st.dictionaries(st.sampled_from("ab"), st.integers(0, 9))), max_size=6)
meeting = st.tuples(st.integers(0, 9), st.sampled_from(USERS))


def folded(state: UserState, row: dict[str, object]) -> Event:
    one = msgspec.convert(row, Event)
    fold(state, one, T0_MS, DAY_MS, described(one, msgspec.json.encode(row), NAMES))
    return one


def visited(done: list[tuple[int, dict[str, int]]]) -> UserState:
    """The device after a guest's visits."""
    state = UserState()
    for number, (at, traits) in enumerate(done):
        folded(state, event(user="", userId=None, anonymousId="d", type="identify", item=f"i{number}", ts_ms=T0_MS + at,
                            id=f"d{number}", traits=traits))  # fmt: skip
    return state


def spans(state: UserState) -> dict[str, tuple[int, int]]:
    """User → after when, and until when, the device was theirs."""
    return {user: (after, until) for (after, _), (until, user) in pairwise([(-1, ""), *state.claims])}


def claimed(device: UserState, met: list[tuple[int, str]], users: dict[str, UserState]) -> None:
    """The stream: claims in the order in which they come, each answered to everybody."""
    for at, user in met:
        identity.note_claim(device, identity.Claim("t", "d", user, T0_MS + at))
        for answer in identity.answers(device, "t", "d"):
            identity.link(users[answer.user], answer)


@given(guests, st.lists(meeting, max_size=4), st.randoms(use_true_random=False))
@settings(max_examples=100)
def test_nobody_keeps_what_is_of_anothers_time_whichever_claim_comes_first(
    done: list[tuple[int, dict[str, int]]], met: list[tuple[int, str]], random: object
) -> None:
    random.shuffle(met)  # type: ignore[attr-defined]
    device, users = visited(done), {user: UserState(events=1) for user in USERS}
    claimed(device, met, users)
    whose = spans(device)
    for user, state in users.items():
        after, until = whose.get(user, (0, 0))
        kept = [*state.linked.get("d", []), *state.linked_traits.get("d", {}).values()]
        assert all(after < one.ts_ms <= until for one in kept)
        newest = {name: one for name, one in device.traits.items() if after < one.ts_ms <= until}
        assert newest.items() <= state.linked_traits.get("d", {}).items(), "and has all of the device's that is theirs"


@given(guests, st.lists(meeting, max_size=3, unique_by=lambda one: one[1]), st.randoms(use_true_random=False))
@settings(max_examples=100)
def test_the_stream_says_what_a_batch_does_whichever_claim_comes_first(
    done: list[tuple[int, dict[str, int]]], met: list[tuple[int, str]], random: object
) -> None:
    """Of visits that were over when the first one signed in: then nothing was said over."""
    over = [(at, traits) for at, traits in done if at <= min((at for at, _ in met), default=9)]
    batch: dict[str, UserState] = {"d": visited(over)}
    for number, (at, user) in enumerate(sorted(met)):
        state = batch.setdefault(user, UserState())
        identity.join(batch, folded(state, event(user=user, type="identify", item=None, anonymousId="d", ts_ms=T0_MS + at,
                                                 id=f"s{number}")))  # fmt: skip
    random.shuffle(met)  # type: ignore[attr-defined]
    device, users = visited(over), {user: UserState(events=1) for user in USERS}
    claimed(device, met, users)
    for user, state in users.items():
        other = batch.get(user, UserState())
        assert (state.linked.get("d", []), state.linked_traits) == (other.linked.get("d", []), other.linked_traits)
