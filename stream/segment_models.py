"""What the models of a release say of the states of a replay: by the code that asks them live, for many states in one call.

A replay that is known beforehand is gone through twice: first `Ahead` notes each state that will be looked at and has the
models asked, then they answer at once.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np

from stream.core.segments.segment_history import Said
from stream.core.segments.segment_rules import Rules
from stream.core.survival.churn import ChurnPolicy
from stream.core.user.featurize import Float32, churn_features
from stream.core.user.replay import Replay
from stream.core.user.state import UserState
from stream.placing import place
from stream.serving import Serving

STATES_MAX = 256  # asked of in one call: more is no faster, and needs more memory

T = TypeVar("T")


class _Moment(NamedTuple):
    """A state as it was: what stands for it, and what the models read of it."""

    mark: bytes
    placed: UserState  # its history alone: it goes on being changed
    features: Float32 | None  # (F,) of churn


class ReleaseAsked:
    """The port `segment_history.Asked` over a release and a tenant's items. Only what `rules` read is asked."""

    def __init__(
        self, serving: Serving, tenant: str, rules: Rules, on_asked: Callable[[int], None] = lambda n: None
    ) -> None:  # fmt: skip
        """`on_asked` is told of how many states more were asked of."""
        self.serving, self.tenant, self.rules, self.on_asked = serving, tenant, rules, on_asked
        self._said: dict[bytes, Said] = {}
        self._waiting: dict[bytes, _Moment] = {}

    @property
    def churn(self) -> ChurnPolicy:
        return self.serving.churn

    def __call__(self, state: UserState) -> Said:
        """What was asked ahead, or is asked now."""
        mark = _mark(state)
        if mark not in self._said:
            self._waiting.setdefault(mark, self._moment(mark, state))
            self.ask()
        return self._said[mark]

    def ahead(self, state: UserState) -> None:
        """Somebody will want to know of this state as it is now."""
        mark = _mark(state)
        if mark not in self._said and mark not in self._waiting:
            self._waiting[mark] = self._moment(mark, state)
            if len(self._waiting) >= STATES_MAX:
                self.ask()

    def ask(self) -> None:
        """Have the models answer of all that wait."""
        moments, self._waiting = list(self._waiting.values()), {}
        if not moments:
            return
        curves: list[Float32 | None] = [None] * len(moments)
        if "cluster" in self.rules.reads:
            asyncio.run(place(self.serving, self.tenant, [one.placed for one in moments], _at_once))
        if "churn" in self.rules.reads and self.serving.models is not None:
            features = [one.features for one in moments if one.features is not None]
            curves = list(self.serving.models.survival(np.stack(features)))
        self._said |= {one.mark: Said(one.placed.placed.cluster, curve) for one, curve in zip(moments, curves, strict=True)}
        self.on_asked(len(moments))

    def _moment(self, mark: bytes, state: UserState) -> _Moment:
        history = list(state.history())
        index = self.serving.index(self.tenant)
        for touch in history:  # live, the counts of an item make it known, if nothing else does
            if touch.item_id not in index.row_of:
                index.row(touch.item_id)
        return _Moment(mark, UserState(ring=history, last_ts_ms=state.last_ts_ms),
                       churn_features(state) if "churn" in self.rules.reads else None)  # fmt: skip


class Ahead:
    """Watches a replay, to ask of each state that a `SegmentHistory` of the same users and times will look at."""

    def __init__(self, asked: ReleaseAsked, until: Callable[[str], int], since_ms: int) -> None:
        self.asked, self.until, self.since_ms = asked, until, since_ms
        self.replay = Replay(self)

    def passes(self, user: str, to_ms: int) -> None:
        """Time alone changes nothing that a model reads."""

    def forgets(self, user: str) -> None:
        """What was asked in vain is not used."""

    def looks(self, user: str, at_ms: int) -> None:
        state = self.replay.states[user]
        if state.events and not state.claims and self.since_ms <= at_ms < self.until(user):
            self.asked.ahead(state)

    def finish(self) -> None:
        self.replay.finish(0)
        self.asked.ask()


def _mark(state: UserState) -> bytes:
    """Stands for everything that a model reads of a state."""
    read = (state.ring, state.linked, state.first_ts_ms, state.last_ts_ms, state.events, state.orders, state.revenue,
            state.days, state.order_days)  # fmt: skip
    return hashlib.blake2b(msgspec.msgpack.encode(read), digest_size=16).digest()


async def _at_once(call: Callable[..., T], *args: object) -> T:
    """The port `Runner`: in a command there is no loop to be kept free."""
    return call(*args)
