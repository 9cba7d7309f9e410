"""Segment changes, live: who is touched is looked at when the interval closes, everybody in sweeps: so time and new rules
take effect."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from schemas.outputs import SegmentChange, output_id
from stream.adapters.watched import Watched
from stream.core import churn, segments
from stream.core.featurize import churn_features
from stream.core.segments import NO_RULES, Change, Rules, RulesError, RulesFile, compiled
from stream.core.state import DAY_MS, UserState
from stream.outbox import Outbox, utc
from stream.partition import PartitionState
from stream.ports import Runner
from stream.serving import Serving

USERS_MAX = 512  # looked at when one interval closes
FILE_BYTES_MAX = 1 << 20


def load(path: Path) -> Rules:
    """The rules of a file. Raises RulesError, which names the file, the rule and what is wrong."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise RulesError(f"{path} is larger than {FILE_BYTES_MAX:,} bytes")
        return compiled(msgspec.yaml.decode(path.read_bytes(), type=RulesFile))
    except (OSError, msgspec.MsgspecError) as error:
        raise RulesError(f"{path}: {error}") from error
    except RulesError as error:
        raise RulesError(f"{path}: {error}") from error


class SegmentDesk:
    """Follows the file of rules, and moves users. `run` takes model calls off the event loop."""

    def __init__(self, run: Runner, path: Path, sweep_s: int) -> None:
        """Everybody is looked at again each `sweep_s`."""
        self.run, self.sweep_s = run, sweep_s
        self._file: Watched[Rules] = Watched(path, load, NO_RULES, "segments")
        self.look()

    @property
    def rules(self) -> Rules:
        return self._file.value

    def look(self) -> None:
        """Take the file over if it has changed."""
        self._file.look()

    async def settle(self, part: PartitionState, serving: Serving, clock_ms: int, outbox: Outbox) -> None:
        """Move USERS_MAX of the users whose membership may be out of date; those touched first come first."""
        if part.meta.live_since_ms == 0:
            return  # while history is imported, no time is the present; the sweep after it looks at everybody
        keys = [key for key, _ in zip(part.unsorted, range(USERS_MAX), strict=False)]
        for key in keys:
            del part.unsorted[key]
        keys = [key for key in keys if part.read(key).events]
        if not keys or not (self.rules.rules or any(part.read(key).segments for key in keys)):
            return
        chances = await self._churn(serving, [part.read(key) for key in keys], clock_ms)
        for key, chance in zip(keys, chances, strict=True):
            tenant, user = key.decode().split("/", 1)
            values = segments.values_of(part.read(key), clock_ms, chance)
            inside = [] if part.read(key).claims else self.rules.inside(tenant, values)  # its owner is in, under another id
            for change in segments.move(part.read(key), inside, clock_ms):
                part.change(key)
                self._emit(change, tenant, user, part.read(key), values, clock_ms, serving, outbox)
                part.outcomes["segment_entered" if change.entered else "segment_left"] += 1

    async def _churn(self, serving: Serving, states: list[UserState], clock_ms: int) -> list[float]:
        """P(no return) of each, 0 where no rule asks or no model can say."""
        if not self.rules.reads_churn or serving.models is None:
            return [0.0] * len(states)
        curves = await self.run(serving.models.survival, np.stack([churn_features(state) for state in states]))
        silences = np.array([max(0.0, (clock_ms - state.last_ts_ms) / DAY_MS) for state in states])
        return [float(p) for p in churn.p_after(curves, silences, serving.churn)]

    def _emit(
        self, change: Change, tenant: str, user: str, state: UserState, values: dict[str, float | bool], clock_ms: int,
        serving: Serving, outbox: Outbox,
    ) -> None:  # fmt: skip
        outbox.segment_change(SegmentChange(
            change_id=output_id("segment-change", tenant, user, change.segment, str(change.number)), tenant=tenant,
            user_id=user, segment=change.segment, change="entered" if change.entered else "left", number=change.number,
            values={name: round(float(values[name]), 6) for name in self.rules.read_by(change.segment)},
            as_of_event_id=state.last_event_id, as_of_ts=utc(clock_ms), rules_version=self.rules.version,
            model_version=serving.version,
        ), clock_ms)  # fmt: skip
