"""Churn alerts in event time: raised when silence has reached its threshold, cleared when the user is back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from schemas.outputs import ChurnAlert, output_id
from stream.core.survival import churn
from stream.core.user.featurize import Float32, alert_features, churn_features
from stream.core.user.state import DAY_MS, DAYS_MAX, Alert, UserState
from stream.core.user.totals import totals
from stream.outbox import Outbox, utc
from stream.partition import Cause, PartitionState
from stream.ports import Runner
from stream.serving import NO_MODEL, Serving

NO_PROFILE = "no profile any more"


class AlertDesk:
    """Raises and clears; a `stream.due.Foresight`. `run` takes model calls off the event loop."""

    def __init__(self, run: Runner) -> None:
        self.run = run

    def has_come(self, part: PartitionState, key: bytes, clock_ms: int) -> bool:
        """Not for users with events not yet rescheduled: their time is another by now."""
        return 0 < part.read(key).due_ts_ms <= clock_ms and key not in part.unscheduled

    def pass_over(self, part: PartitionState, key: bytes) -> None:
        """Those whose due time is still to be set are judged then."""
        if self.has_come(part, key, part.meta.clock_ms):
            state = part.change(key)
            state.alert = Alert(raised=True, silenced=True, raised_ts_ms=part.meta.clock_ms)
            state.due_ts_ms = 0

    async def bring_about(
        self, part: PartitionState, serving: Serving, keys: list[bytes], clock_ms: int, outbox: Outbox
    ) -> None:
        """Alerts whose time has come. A timer may be older than the user's last event, where a worker ended before it had
        set the new one: then it is set now."""
        keys = [key for key in keys if self.has_come(part, key, clock_ms)]
        if not keys or serving.models is None:
            return
        states = [part.read(key) for key in keys]
        curves, foreseen = await self._foresee(serving, states)
        known = np.stack([alert_features(state, state.due_ts_ms) for state in states])  # (B, F)
        effects = await self.run(serving.models.effects, known)
        for at, (key, curve, foreseen_ms) in enumerate(zip(keys, curves, foreseen, strict=True)):
            state = part.change(key)
            due_ms = state.due_ts_ms
            state.due_ts_ms = 0
            if state.alert.raised or state.claims:  # said already, or said of the owner under another id
                continue
            if not 0 < foreseen_ms <= clock_ms:
                state.due_ts_ms = foreseen_ms
                continue
            state.alert = Alert(raised=True, raised_ts_ms=due_ms, alert_event_id=state.last_event_id)
            said = {name: (float(both[at, 0]), float(both[at, 1])) for name, both in effects.items()}
            self._emit("raised", key, state, curve, due_ms, serving, outbox, tuple(known[at].tolist()), said)
            part.unsorted.setdefault(key, False)  # rules about alerts are asked when the interval closes
            part.outcomes["alert_raised"] += 1

    async def foresee(
        self, part: PartitionState, serving: Serving, users: list[tuple[bytes, Cause]], outbox: Outbox
    ) -> None:
        """New due times; alerts cleared whose risk has fallen below `clear_at`."""
        curves, foreseen = await self._foresee(serving, [part.read(key) for key, _ in users])
        for (key, cause), curve, due_ms in zip(users, curves, foreseen, strict=True):
            self._foresee_one(part, serving, key, cause, curve, due_ms, outbox)

    def _foresee_one(
        self, part: PartitionState, serving: Serving, key: bytes, cause: Cause, curve: Float32, due_ms: int,
        outbox: Outbox,
    ) -> None:  # fmt: skip
        policy = serving.churn
        state = part.change(key)
        if state.claims:  # an anonymous id whose owner is known now: its silence says nothing, the owner's does
            self._clear(part, key, curve, serving, outbox)
            state.due_ts_ms = 0
            return
        if cause == "live" and state.alert.raised and churn.p_no_return(curve, 0.0, policy) < policy.clear_at:
            self._clear(part, key, curve, serving, outbox)
        if due_ms and state.alert.cleared_ts_ms:
            due_ms = max(due_ms, state.alert.cleared_ts_ms + round(policy.cooldown_days * DAY_MS))
        news = cause == "live" or state.alert.raised  # what stands was said already, and is taken back when they return
        if 0 < due_ms <= part.meta.clock_ms and part.meta.live_since_ms and not news:
            if cause == "import" or state.last_ts_ms < part.meta.live_since_ms:
                state.alert = Alert(raised=True, silenced=True, raised_ts_ms=part.meta.clock_ms)
            else:
                due_ms = part.meta.clock_ms  # the new model would have said so earlier; it says so now
        state.due_ts_ms = 0 if state.alert.raised else due_ms

    def _clear(self, part: PartitionState, key: bytes, curve: Float32, serving: Serving, outbox: Outbox) -> None:
        """Take a standing alert back; one that was never announced goes without a word."""
        state = part.change(key)
        if not state.alert.raised:
            return
        if not state.alert.silenced:
            self._emit("cleared", key, state, curve, state.last_ts_ms, serving, outbox, why=_why_cleared(state))
            part.outcomes["alert_cleared"] += 1
        state.alert = Alert(cleared_ts_ms=state.last_ts_ms)

    def forget(
        self, part: PartitionState, serving: Serving, key: bytes, ends_ms: Callable[[int], int], outbox: Outbox
    ) -> None:  # fmt: skip
        """A user's profile goes: an alert that stands is taken back, and no model is asked of them any more. `ends_ms`: as
        of when what began then ends."""
        state = part.read(key)
        if state.alert.raised and not state.alert.silenced:
            self._emit("cleared", key, state, None, ends_ms(state.alert.raised_ts_ms), serving, outbox, why=NO_PROFILE)
            part.outcomes["alert_cleared"] += 1

    async def _foresee(self, serving: Serving, states: list[UserState]) -> tuple[Float32, list[int]]:
        """Log survival (B, E), and when silence alone will cross the threshold, ms, 0 for never."""
        assert serving.models is not None
        features = np.stack([churn_features(state) for state in states])  # (B, F)
        curves = await self.run(serving.models.survival, features)
        last_ts_ms = np.array([state.last_ts_ms for state in states])
        return curves, churn.due_ms(curves, last_ts_ms, serving.churn).tolist()

    def _emit(
        self, what: str, key: bytes, state: UserState, curve: Float32 | None, ts_ms: int, serving: Serving, outbox: Outbox,
        features: tuple[float, ...] = (), effects: dict[str, tuple[float, float]] | None = None, why: str = "",
    ) -> None:  # fmt: skip
        """Without a curve nothing is foreseen: the chance is 0, and all of [0, 1] its interval."""
        tenant, user = key.decode().split("/", 1)
        silence_days = max(0.0, (ts_ms - state.last_ts_ms) / DAY_MS)
        p = 0.0 if curve is None else float(churn.p_no_return(curve, silence_days, serving.churn))
        alert = ChurnAlert(
            alert_id=output_id("churn-alert", tenant, user, state.alert.alert_event_id or state.last_event_id, what),
            tenant=tenant,
            user_id=user,
            state="raised" if what == "raised" else "cleared",
            probability=round(p, 6),
            horizon_days=round(serving.churn.horizon_days),
            interval=(0.0, 1.0) if curve is None else churn.interval(p, serving.churn),
            reasons=reasons(state, silence_days) if what == "raised" else (why,),
            last_event_ts=utc(state.last_ts_ms),
            as_of_ts=utc(ts_ms),
            model_version=NO_MODEL if curve is None else serving.version or NO_MODEL,
            features=features,
            effects=effects or {},
        )
        outbox.alert(alert, ts_ms)


def reasons(state: UserState, silence_days: float) -> tuple[str, ...]:
    """Why, in plain words: the silence against the user's own rhythm, and how much history there is.

    >>> reasons(UserState(days=[1, 3, 5], orders=2), 9.0)
    ('silent for 9.0 days, usually back after 2.0', '2 orders in 3 active days')
    """
    whole = totals(state)
    gaps = np.diff(whole.days) if len(whole.days) > 1 else None
    days = f"{DAYS_MAX} or more active days" if len(whole.days) >= DAYS_MAX else _plural(len(whole.days), "active day")
    rhythm = f"usually back after {float(np.median(gaps)):.1f}" if gaps is not None else "never came back before"
    return (
        f"silent for {silence_days:.1f} days, {rhythm}",
        f"{_plural(whole.orders, 'order')} in {days}",
    )


def _why_cleared(state: UserState) -> str:
    return "known by another id" if state.claims else "came back"


def _plural(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
