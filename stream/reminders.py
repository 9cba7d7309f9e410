"""Reminders of purchases, in event time: said when their window begins, closed when it was bought or the window ends."""

from __future__ import annotations

from schemas.outputs import Reminder, output_id
from stream.core.survival import reminders
from stream.core.survival.reminders import Expected, Policy, Rhythms
from stream.core.user.state import DAY_MS, Reminded, UserState
from stream.outbox import Outbox, utc
from stream.partition import Cause, PartitionState
from stream.serving import Serving


class ReminderDesk:
    """Says and closes; a `stream.due.Foresight`. No model call is needed: the chance is closed form."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def has_come(self, part: PartitionState, key: bytes, clock_ms: int) -> bool:
        """Also where an order is not looked at yet: it may be what a reminder was of, and from the next day on something may
        be due since. All follows from the state alone, so that no batch's bounds show in what is said."""
        state = part.read(key)
        mine = state.reminders
        if 0 < mine.due_ts_ms <= clock_ms:
            return True
        return mine.orders != state.orders > 0 and (bool(mine.said) or clock_ms // DAY_MS > state.order_days[-1])

    def pass_over(self, part: PartitionState, key: bytes) -> None:
        """The next one is looked for when the user is rescheduled."""
        if 0 < part.read(key).reminders.due_ts_ms <= part.meta.clock_ms:
            mine = part.change(key).reminders
            mine.due_ts_ms, mine.orders = 0, -1
            part.unscheduled.setdefault(key, "import")

    async def bring_about(
        self, part: PartitionState, serving: Serving, keys: list[bytes], clock_ms: int, outbox: Outbox
    ) -> None:
        """Each at its due time, one after the other, whatever the clock says now: a replay says the same."""
        for key in keys:
            if not self.has_come(part, key, clock_ms):
                continue
            state, rhythms = part.change(key), serving.rhythms(_tenant(key))
            self._close(part, key, state, serving, 0, outbox)
            self._set_due(part, state, rhythms)
            while 0 < (due_ms := state.reminders.due_ts_ms) <= clock_ms:
                self._close(part, key, state, serving, due_ms, outbox)
                if rhythms is not None and self.policy.week_max:
                    for said, one in reminders.say(state, due_ms, rhythms, self.policy, serving.version):
                        self._emit(key, said, due_ms, reasons(one), outbox)
                        part.outcomes["reminder_due"] += 1
                self._set_due(part, state, rhythms)

    async def foresee(
        self, part: PartitionState, serving: Serving, users: list[tuple[bytes, Cause]], outbox: Outbox
    ) -> None:
        """New due times for those who ordered; reminders closed of what was bought since."""
        clock_ms = part.meta.clock_ms
        for key, cause in users:
            state = part.read(key)
            if cause == "live" and state.reminders.orders == state.orders:
                continue
            mine = part.change(key).reminders
            if not part.meta.live_since_ms:  # history is imported: looked for when live begins
                mine.due_ts_ms = state.last_ts_ms if state.orders else 0
                continue
            self._close(part, key, state, serving, clock_ms, outbox)
            self._set_due(part, state, serving.rhythms(_tenant(key)))

    def _set_due(self, part: PartitionState, state: UserState, rhythms: Rhythms | None) -> None:
        mine = state.reminders
        mine.orders = state.orders
        mine.past_ts_ms = max(mine.past_ts_ms, part.meta.live_since_ms, part.meta.reminding_since_ms)
        mine.due_ts_ms = reminders.next_due_ms(state, rhythms, self.policy)

    def _close(
        self, part: PartitionState, key: bytes, state: UserState, serving: Serving, now_ms: int, outbox: Outbox
    ) -> None:
        for one, at_ms in reminders.close(state, now_ms, serving.index(_tenant(key)).category_of):
            self._emit(key, one, at_ms, (), outbox)
            part.outcomes[f"reminder_{one.outcome}"] += 1

    def _emit(self, key: bytes, one: Reminded, ts_ms: int, why: tuple[str, ...], outbox: Outbox) -> None:
        """The id stands for user, what it is of, and the purchase it is after: of one purchase nobody is reminded twice."""
        tenant, user = key.decode().split("/", 1)
        category = "" if one.item_id else one.category
        outbox.reminder(Reminder(
            reminder_id=output_id("reminder", tenant, user, one.item_id, category, str(one.bought_ts_ms)), tenant=tenant,
            user_id=user, state=one.outcome or "due", item_id=one.item_id, category=one.category,
            last_bought_ts=utc(one.bought_ts_ms), interval_days=one.interval_days, window_from=utc(one.from_ts_ms),
            window_to=utc(one.until_ts_ms), probability=one.probability, reasons=why, as_of_ts=utc(ts_ms),
            model_version=one.model_version,
        ), ts_ms)  # fmt: skip


def _tenant(key: bytes) -> str:
    return key.decode().split("/", 1)[0]


def reasons(one: Expected) -> tuple[str, ...]:
    """Why, in plain words.

    >>> reasons(Expected(("tea",), "drinks", 0, 2, 30.5, 23 * DAY_MS, 37 * DAY_MS))
    ('bought 23.0 days before, usually again after 30.5', "by 2 of their own intervals and the item's average")
    """
    ago_days = (one.from_ms - one.bought_ts_ms) / DAY_MS
    what = "item's" if one.item_id else "shop's"
    by = f"by {one.repeats} of their own intervals and the {what} average" if one.repeats else "by the item's average"
    why = (f"bought {ago_days:.1f} days before, usually again after {one.interval_days:.1f}", by)
    return why if one.item_id else (*why, f"{len(one.items)} items of the category, each bought once")
