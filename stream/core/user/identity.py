"""Joining an anonymous history to a known user, although their keys live on different partitions.

The user's partition sends a Claim to the anonymous id's partition; that owner answers with the part of its ring that
belongs to the user, and again for every straggler. The user keeps it as a sub-history, replaced whole, so a repeated
answer changes nothing. One anonymous id with two users (a shared device) is split by time: events up to a user's last
claim, and after the claims of the others before it, are that user's. Two known ids are never joined.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from schemas.events import Event, Lane, key
from stream.core.user.state import NOTHING_STATED, Activity, Stated, Touch, Trait, UserState, count_item
from stream.core.user.traits import Said, merged

CLAIM_INTERVAL_MS = 30 * 60_000  # an event with both ids renews the claim at most this often
CLAIMS_MAX = 16  # users of one shared device remembered; more is a kiosk, whose history belongs to nobody


class Claim(msgspec.Struct, frozen=True, tag="claim", array_like=True):
    """`user` was seen together with `anonymous` at `ts_ms`. Keyed by the anonymous id."""

    tenant: str
    anonymous: str
    user: str
    ts_ms: int
    lane: Lane = "live"


class Answer(msgspec.Struct, frozen=True, tag="answer", array_like=True):
    """The anonymous history that belongs to `user`, oldest first, and what was said there of advertising and of the user.
    Keyed by the user. `ring`: older ordered lines too. `after_ms`: what is older there is not this user's (-1 where nothing
    is another's; missing before 0.10.0)."""

    tenant: str
    anonymous: str
    user: str
    ring: tuple[Touch, ...]
    ads: Stated = NOTHING_STATED
    activities: tuple[Activity, ...] = ()
    traits: dict[str, Trait] = {}
    after_ms: int = -1

    @property
    def known_ms(self) -> int:
        """The newest of what it tells, ms; 0 where it tells nothing."""
        newest = (*(touch.ts_ms for touch in self.ring[-1:]), *(one.ts_ms for one in self.activities[-1:]),
                  *(trait.ts_ms for trait in self.traits.values()))  # fmt: skip
        return max(newest, default=self.ads.ts_ms)


def nobody(user_key: bytes, ts_ms: int) -> bool:
    """Is on no list of erasures."""
    return False


def claims_of(state: UserState, event: Event, erased: Callable[[bytes, int], bool] = nobody) -> list[Claim]:
    """Claims an event gives rise to, noted in the known user's state so that they are not sent with every event. An id of
    which `erased(its key, ts_ms)` says that nothing is taken is neither claimed nor noted."""
    if event.user_id is None or (event.anonymous_id is None and event.previous_id is None):
        return []
    result = []
    for anonymous in {event.anonymous_id, event.previous_id} - {None, event.user_id}:
        assert anonymous is not None
        ts_ms = event.ts_ms
        if erased(key(event.tenant, anonymous), ts_ms):
            continue
        last = state.claimed.get(anonymous)
        if last is None or ts_ms - last >= CLAIM_INTERVAL_MS:
            state.claimed[anonymous] = ts_ms
            result.append(Claim(tenant=event.tenant, anonymous=anonymous, user=event.user_id, ts_ms=ts_ms, lane=event.lane))
    while len(state.claimed) > CLAIMS_MAX:
        del state.claimed[min(state.claimed, key=lambda anonymous: (state.claimed[anonymous], anonymous))]
    return sorted(result, key=lambda claim: claim.anonymous)


class Erase(msgspec.Struct, frozen=True, tag="erase", array_like=True):
    """Forget `user`, who may be an anonymous id. Keyed by the user; folded like an event, so that a crash repeats it."""

    tenant: str
    user: str


class Forget(msgspec.Struct, frozen=True, tag="forget", array_like=True):
    """`other` is erased: the state of `holder` lets go of what it knows of it. Keyed by the holder. `ads_stay`: `other` only
    withdrew consent to a profile, so what was said of advertising stays. `met_ms`: when the two were seen together last, as
    `other` knew it, which a client's clock may have put ahead (missing before 0.10.0)."""

    tenant: str
    holder: str
    other: str
    ads_stay: bool = False
    met_ms: int = 0


class Recall(msgspec.Struct, frozen=True, tag="recall", array_like=True):
    """What `user` said of themselves before a rule of segments asked for it, as ClickHouse knows it. Keyed by the user."""

    tenant: str
    user: str
    said: tuple[Said, ...]


Message = Claim | Answer | Erase | Forget | Recall
encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Message).decode


def note_claim(state: UserState, claim: Claim) -> bool:
    """Record a claim on the anonymous state; False when it says nothing new or the id is a known user's."""
    if state.known:
        return False
    known = {user: ts for ts, user in state.claims}
    if known.get(claim.user, -1) >= claim.ts_ms:
        return False
    known[claim.user] = claim.ts_ms
    state.claims = sorted((ts, user) for user, ts in known.items())[-CLAIMS_MAX:]
    return True


def answers(state: UserState, tenant: str, anonymous: str) -> list[Answer]:
    """What each claiming user is owed now. Of what was said of advertising, and of each trait, the newest is known, and it
    goes to whom its time belongs.

    >>> ring = [Touch(ts, f"m{ts}", "i", 1, 0.0) for ts in (1, 5, 9)]
    >>> [(a.user, [t.ts_ms for t in a.ring]) for a in answers(UserState(ring=ring, claims=[(5, "u"), (9, "v")]), "t", "x")]
    [('u', [1, 5]), ('v', [9])]
    """
    result = []
    after, touches = -1, state.own_touches()
    for ts_ms, user in state.claims:
        ring = tuple(touch for touch in touches if after < touch.ts_ms <= ts_ms)
        did = tuple(one for one in state.activities if after < one.ts_ms <= ts_ms)
        ads = state.ads if after < state.ads.ts_ms <= ts_ms else NOTHING_STATED
        traits = {name: one for name, one in state.traits.items() if after < one.ts_ms <= ts_ms}
        result.append(Answer(tenant=tenant, anonymous=anonymous, user=user, ring=ring, ads=ads, activities=did,
                             traits=traits, after_ms=after))  # fmt: skip
        after = ts_ms
    return result


def others(state: UserState) -> list[str]:
    """Ids whose states may name this one: those it claimed or was linked to, and those that claimed it."""
    return sorted({*state.claimed, *state.linked, *(user for _, user in state.claims)})


def met_last_ms(state: UserState, other: str) -> int:
    """When this id and the other were seen together last; 0: never, as far as is known."""
    return max([state.claimed.get(other, 0), *(ts_ms for ts_ms, user in state.claims if user == other)])


def forget(state: UserState, other: str, *, ads_stay: bool = False) -> bool:
    """Let go of an erased id; False when there is nothing of it. On an anonymous state what was done in the other's
    time goes too, what they said of advertising unless `ads_stay`, and what is counted an item is counted anew from what
    is left.

    >>> ring = [Touch(ts, f"m{ts}", f"i{ts}", 1, 0.0) for ts in (1, 5, 9)]
    >>> state = UserState(ring=ring, claims=[(5, "u"), (9, "v")])
    >>> forget(state, "u"), [touch.ts_ms for touch in state.ring], state.claims, list(state.items)
    (True, [9], [(9, 'v')], ['i9'])
    """
    known = other in state.linked or other in state.claimed
    state.linked.pop(other, None)
    state.linked_activities.pop(other, None)
    state.linked_traits.pop(other, None)
    state.claimed.pop(other, None)
    after = -1
    for ts_ms, user in state.claims:
        if user == other:
            state.ring = [touch for touch in state.ring if not after < touch.ts_ms <= ts_ms]
            state.ordered = [touch for touch in state.ordered if not after < touch.ts_ms <= ts_ms]
            state.activities = [one for one in state.activities if not after < one.ts_ms <= ts_ms]
            state.traits = {name: one for name, one in state.traits.items() if not after < one.ts_ms <= ts_ms}
            if after < state.ads.ts_ms <= ts_ms and not ads_stay:
                state.ads = NOTHING_STATED
            state.claims = [claim for claim in state.claims if claim[1] != other]
            state.forgot_ms = max(state.forgot_ms, ts_ms)
            state.items = {}
            for touch in state.own_touches():
                count_item(state.items, touch)
            return True
        after = ts_ms
    return known


def join(states: dict[str, UserState], event: Event) -> list[Answer]:
    """After an event was folded: anonymous histories go to the known users who claim them, by the same steps as between two
    partitions, where all states of a tenant are at hand. Returns the answers that changed a state."""
    found = answers(states[event.user], event.tenant, event.user)  # of an anonymous id that was claimed: a straggler
    for claim in claims_of(states[event.user], event):
        anonymous = states.setdefault(claim.anonymous, UserState())
        note_claim(anonymous, claim)
        found += answers(anonymous, claim.tenant, claim.anonymous)
    return [one for one in found if link(states.setdefault(one.user, UserState()), one)]


def link(state: UserState, answer: Answer) -> bool:
    """Put an answer into the known user's state; False when it changes nothing. Who has no profile, since they withdrew
    consent meanwhile, gets none by it; what was said of advertising is none."""
    if not state.events:
        before, state.ads = state.ads, max(state.ads, answer.ads)
        return state.ads != before
    ring, did, ads = list(answer.ring), list(answer.activities), max(state.ads, answer.ads)
    said = state.linked_traits.get(answer.anonymous, {})
    mine = {name: one for name, one in said.items() if one.ts_ms > answer.after_ms}  # a claim may come after a later one
    traits = merged(mine, answer.traits)  # what another user of the device said later leaves this one theirs
    known = (state.linked.get(answer.anonymous), state.linked_activities.get(answer.anonymous, []), state.ads, said)
    if known == (ring, did, ads, traits):
        return False
    state.linked[answer.anonymous], state.ads = ring, ads
    state.linked_activities.pop(answer.anonymous, None)
    state.linked_traits.pop(answer.anonymous, None)
    if did:
        state.linked_activities[answer.anonymous] = did
    if traits:
        state.linked_traits[answer.anonymous] = traits
    return True
