"""Segment changes, live: who is touched is looked at when the interval closes, and who will be moved by time alone at that
moment; everybody in sweeps, so new rules and releases take effect, and what time will do until the next one is foreseen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from schemas.outputs import SegmentChange, output_id
from stream.adapters.watched import Watched
from stream.core.expressions.turning import Values, turned
from stream.core.segments import segments
from stream.core.segments.audience import NO_AUDIENCE, Audience
from stream.core.segments.segment_fields import values_of
from stream.core.segments.segment_rules import NO_RULES, Rules, RulesError, RulesFile, compiled
from stream.core.segments.segments import Change
from stream.core.survival import churn
from stream.core.user.featurize import Float32, churn_features
from stream.core.user.state import DAY_MS, UserState
from stream.core.user.traits import let_go
from stream.due import Silent, nobody
from stream.outbox import Outbox, utc
from stream.partition import PartitionState
from stream.placing import place, place_some, stale
from stream.ports import Runner
from stream.serving import Serving

USERS_MAX = 512  # looked at when one interval closes
FILE_BYTES_MAX = 1 << 20


def read(path: Path) -> RulesFile:
    """A file of rules that can be used. Raises RulesError, which names the file, the rule and what is wrong."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise RulesError(f"{path} is larger than {FILE_BYTES_MAX:,} bytes")
        file = msgspec.yaml.decode(path.read_bytes(), type=RulesFile)
        compiled(file)
    except (OSError, msgspec.MsgspecError) as error:
        raise RulesError(f"{path}: {error}") from error
    except RulesError as error:
        raise RulesError(f"{path}: {error}") from error
    return file


def load(path: Path, audience: Audience | None = None, release: str = "") -> Rules:
    """The rules of a file, as of a release. Raises RulesError, which names the file, the rule and what is wrong."""
    return compiled(read(path), audience, release)


class SegmentDesk:
    """Follows the file of rules and the release, and moves users. `run` takes model calls off the event loop."""

    def __init__(self, run: Runner, path: Path, sweep_s: int) -> None:
        """Everybody is looked at again each `sweep_s`."""
        self.run, self.sweep_s = run, sweep_s
        self._file: Watched[RulesFile | None] = Watched(path, read, None, "segments")
        self._compiled: tuple[RulesFile | None, Audience, str] = (None, NO_AUDIENCE, "")
        self.rules = NO_RULES
        self.look()

    def look(self, serving: Serving | None = None) -> None:
        """Take over the file, and what the release knows of everybody, if either has changed."""
        self._file.look()
        known = (serving.audience, serving.version) if serving is not None else self._compiled[1:]
        if (self._file.value, *known) != self._compiled:
            self._compiled = (self._file.value, *known)
            self.rules = NO_RULES if self._file.value is None else compiled(self._file.value, *known)

    async def place(
        self, part: PartitionState, serving: Serving, tenant: str, users: Sequence[tuple[str, UserState]],
        vectors: Float32 | None,
    ) -> None:  # fmt: skip
        """Find the clusters of users who were just recommended to; their vectors (B, D) are known."""
        if "cluster" not in self.rules.reads or vectors is None:
            return
        at = [row for row, (_, state) in enumerate(users) if stale(state, serving)]
        await place(serving, tenant, [users[row][1] for row in at], self.run, vectors[at])
        for row in at:
            part.unsorted.setdefault(f"{tenant}/{users[row][0]}".encode(), False)

    async def settle(
        self, part: PartitionState, serving: Serving, clock_ms: int, outbox: Outbox, silent: Silent = nobody
    ) -> None:  # fmt: skip
        """Move USERS_MAX of the users whose membership may be out of date, but for those of whom nothing more is to be said;
        those touched first come first."""
        if part.meta.live_since_ms == 0:
            return  # while history is imported, no time is the present; the sweep after it looks at everybody
        self.look(serving)
        part.turn(clock_ms)
        keys = [key for key, _ in zip(part.unsorted, range(USERS_MAX), strict=False)]
        swept = {key for key in keys if part.unsorted[key]}  # what an event does, time undoes after a day at the earliest
        for key in keys:
            del part.unsorted[key]
        keys = [key for key in keys if part.read(key).events and not silent(part, key)]
        if self.rules is not NO_RULES:  # of a file that could not be used nobody knows what it asks for
            for key in keys:
                if let_go(part.read(key), self.rules.kept_of(key.decode().split("/", 1)[0])):
                    part.change(key)
        if "cluster" in self.rules.reads:
            for key in keys:  # whoever is owed a recommendation by now is placed with it
                if (part.owed.waits(key) or key not in part.owed) and stale(part.read(key), serving):
                    (part.unplaced if key in swept else part.strayed)[key] = None
            placed = [key for key in await place_some(part, serving, self.run) if not silent(part, key)]
            keys = list(dict.fromkeys([*keys, *placed]))
        if not keys or not (self.rules.rules or any(part.read(key).segments for key in keys)):
            return
        states, until_ms = [part.read(key) for key in keys], clock_ms + 2 * self.sweep_s * 1_000
        curves = await self._curves(serving, states)
        now, then = (_chances(serving, curves, states, at_ms) for at_ms in (clock_ms, until_ms))
        for at, (key, state) in enumerate(zip(keys, states, strict=True)):
            tenant, user = key.decode().split("/", 1)
            values = self._values(serving, tenant, state, clock_ms, now[at])
            inside = [] if state.claims else self.rules.inside(tenant, values)  # its owner is in, under another id
            if self._waits(state, serving):
                inside = segments.kept(state, inside, self.rules)
            elif key in swept and not state.claims:
                later = self.rules.inside(tenant, self._values(serving, tenant, state, until_ms, then[at]))
                if moved := set(inside) ^ set(later):
                    curve = None if curves is None else curves[at]
                    part.set_turn(key, self._turn(serving, tenant, state, curve, moved, later, clock_ms, until_ms))
            for change in segments.move(state, inside, clock_ms):
                part.change(key)
                moved_by = {name: round(float(values[name]), 6) for name in self.rules.read_by(change.segment)}
                self._emit(change, tenant, user, state, moved_by, clock_ms, serving, outbox)
                part.outcomes["segment_entered" if change.entered else "segment_left"] += 1

    def forget(
        self, part: PartitionState, serving: Serving, key: bytes, ends_ms: Callable[[int], int], outbox: Outbox
    ) -> None:  # fmt: skip
        """A user's profile goes: they leave all segments, and no rule is asked about them any more. `ends_ms`: as of when
        what began then ends."""
        tenant, user = key.decode().split("/", 1)
        state = part.read(key)
        for name in segments.members(state):
            number, entered_ms = state.segments[name]
            self._emit(Change(name, number + 1), tenant, user, state, {}, ends_ms(entered_ms), serving, outbox,
                       forgotten=True)  # fmt: skip
            part.outcomes["segment_left"] += 1

    def _waits(self, state: UserState, serving: Serving) -> bool:
        """Whether nobody can say yet where the release that is served puts this user: they stay where they were."""
        if state.claims:
            return False
        placed = state.placed.release
        return serving.models is None or ("cluster" in self.rules.reads and placed not in ("", serving.version))

    def _turn(
        self, serving: Serving, tenant: str, state: UserState, curve: Float32 | None, moved: set[str], later: list[str],
        clock_ms: int, until_ms: int,
    ) -> int:  # fmt: skip
        """When time alone will move the user next. Who comes and goes until `until_ms` may be passed over."""
        def at(at_ms: int) -> Values:
            chance = 0.0 if curve is None else float(churn.p_no_return(curve, _silence_days(state, at_ms), serving.churn))
            return self._values(serving, tenant, state, at_ms, chance)

        return min(turned(self.rules.condition(one), at, clock_ms, until_ms, one in later) for one in moved)

    def _values(self, serving: Serving, tenant: str, state: UserState, at_ms: int, chance: float) -> Values:
        """What rules read of a user at a time, while nothing but time passes."""
        return values_of(state, at_ms, chance, self.rules.measures, serving.index(tenant).item, self.rules.kept.traits)

    async def _curves(self, serving: Serving, states: list[UserState]) -> Float32 | None:
        """Log survival (B, E); None where no rule asks or no model can say."""
        if "churn" not in self.rules.reads or serving.models is None:
            return None
        found: Float32 = await self.run(serving.models.survival, np.stack([churn_features(state) for state in states]))
        return found

    def _emit(
        self, change: Change, tenant: str, user: str, state: UserState, values: dict[str, float], clock_ms: int,
        serving: Serving, outbox: Outbox, *, forgotten: bool = False,
    ) -> None:  # fmt: skip
        """The id tells changes of this profile from those of one that was cleared before it: both count from 1."""
        since = [str(state.since_ms)] if state.since_ms else []  # none: it began before 0.9.0
        outbox.segment_change(SegmentChange(
            change_id=output_id("segment-change", tenant, user, change.segment, str(change.number), *since), tenant=tenant,
            user_id=user, segment=change.segment, change="entered" if change.entered else "left", number=change.number,
            values=values, as_of_event_id=state.last_event_id, as_of_ts=utc(clock_ms), rules_version=self.rules.version,
            model_version=serving.version, profile_since=utc(state.since_ms) if since else None, forgotten=forgotten,
        ), clock_ms)  # fmt: skip


def _silence_days(state: UserState, at_ms: int) -> float:
    return max(0.0, (at_ms - state.last_ts_ms) / DAY_MS)


def _chances(serving: Serving, curves: Float32 | None, states: list[UserState], at_ms: int) -> list[float]:
    """P(no return) of each, 0 without curves (B, E)."""
    if curves is None:
        return [0.0] * len(states)
    silences = np.array([_silence_days(state, at_ms) for state in states])
    return [float(p) for p in churn.p_after(curves, silences, serving.churn)]
