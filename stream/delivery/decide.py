"""Whether a message goes out, now, later or never. Pure: times and what was said before are passed in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from schemas.opinions import SatisfactionAlert
from schemas.outputs import ChurnAlert, Expected, Reminder
from stream.core.user.featurize import mean_order
from stream.delivery.rules import Delivery, several
from stream.delivery.said import Said, subject_of

Status = Literal["send", "held_out", "left_out", "capped", "suppressed", "expired", "deferred"]


class Verdict(NamedTuple):
    """`until`: when a deferred message is looked at again. `propensity`: the chance to be sent that the user's lot had."""

    status: Status
    until: datetime | None = None
    propensity: float | None = None
    expected: Expected | None = None
    reason: str = ""


def concerns(delivery: Delivery, said: Said) -> bool:
    """Whether a delivery is about such a message."""
    if delivery.tenant not in (None, said.tenant):
        return False
    if isinstance(said, ChurnAlert):
        return delivery.about == "churn" and said.state == "raised" and said.probability >= delivery.probability_min
    if isinstance(said, Reminder):
        return delivery.about == "reminder" and said.state == "due" and said.probability >= delivery.probability_min
    if isinstance(said, SatisfactionAlert):
        return (delivery.about == "satisfaction" and said.state == "raised" and delivery.of in (None, said.about)
                and delivery.reason in (None, said.reason)
                and (said.reason == "tickets" or said.before - said.after >= delivery.fall_min))  # fmt: skip
    return (delivery.about == "segment" and said.segment == delivery.segment and said.change == delivery.change
            and not said.forgotten)  # nobody is written to because they want no profile


def decide(
    delivery: Delivery, said: Said, now: datetime, last_sent: Mapping[tuple[str, str], datetime], suppressed: str = "",
    full: str = "", over: str = "",
) -> Verdict:
    """`last_sent`: (delivery, tenant/user or tenant/thing) → when it last went out, or would have gone to somebody held out.
    `suppressed`: why nothing of this delivery may go to the user; empty when it may. `full`: the cap over all deliveries by
    which the user has had enough, see `stream.delivery.caps`; empty where there is none. `over`: how its cause has ended;
    empty while it holds. All are asked before the lot is drawn: the held-out are a random share of those who would have been
    sent it. So they wait for the end of quiet hours like the others, in which the cause of either may end."""
    subject = subject_of(said)
    if suppressed:
        return Verdict("suppressed", reason=suppressed)
    if isinstance(said, Reminder) and said.window_to <= now:
        return Verdict("expired")
    if over:
        return Verdict("expired", reason=over)
    last = last_sent.get((delivery.name, subject))
    if last is not None and now - last < timedelta(days=delivery.cap_days):
        return Verdict("capped", reason=f"this delivery's own cap, once in {several(delivery.cap_days, 'day')}")
    if full:
        return Verdict("capped", reason=full)
    drawn, foreseen = lot(delivery, subject), expected(delivery, said)
    chance, why = _chance(delivery, foreseen)
    if (until := quiet_until(delivery, now)) is not None:
        return Verdict("deferred", until, chance, foreseen, why)
    if drawn < delivery.holdout:
        return Verdict("held_out", None, chance, foreseen, "held out for comparison")
    if drawn < 1 - chance:
        return Verdict("left_out", None, chance, foreseen, why)
    return Verdict("send", None, chance, foreseen, why)


def lot(delivery: Delivery, user: str) -> float:
    """A hash of delivery and user, in [0, 1): the same user stays in or out of the same delivery. Those below `holdout` are
    held out whatever is expected of them; those below 1 − propensity are not sent it.

    >>> from stream.delivery.rules import Delivery
    >>> 0 <= lot(Delivery(name="x", channel="c", about="churn"), "shop/u1") < 1
    True
    """
    digest = hashlib.blake2b(f"{delivery.name}\x1f{user}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def would_be_sent(delivery: Delivery, user: str, chance: float | None) -> bool:
    """Whether somebody would be sent a delivery, had it no hold-out: those who are held out of it by the same lot, and as
    likely as everybody else in the same case, who is sent it with a propensity of `chance`.

    >>> from stream.delivery.rules import Delivery
    >>> half = Delivery(name="x", channel="c", about="churn", holdout=0.5)
    >>> would_be_sent(half, "shop/u2", 0.5), would_be_sent(half, "shop/u2", 0.0)
    (True, False)
    """
    if chance is None or delivery.holdout == 1:
        return True
    drawn = lot(delivery, user)
    if drawn >= delivery.holdout:
        return drawn >= 1 - chance
    return drawn / delivery.holdout >= 1 - chance / (1 - delivery.holdout)


def expected(delivery: Delivery, said: Said) -> Expected | None:
    """What it is foreseen to bring to send this; None for a delivery that does not ask."""
    gain = delivery.gain
    if gain is None or not isinstance(said, ChurnAlert):
        return None
    own = mean_order(said.features) if gain.order_share is not None else None
    value = gain.value if own is None or gain.order_share is None else gain.order_share * own
    effect = said.effects.get(delivery.name)
    if effect is None:
        return Expected(value=value, cost=gain.cost)
    uplift = effect[0] - effect[1]
    return Expected(value=value, cost=gain.cost, uplift=uplift, gain=uplift * value - gain.cost,
                    model_version=said.model_version)  # fmt: skip


def _chance(delivery: Delivery, foreseen: Expected | None) -> tuple[float, str]:
    """How likely such a user's lot is to be sent it, and why."""
    if delivery.gain is None or foreseen is None:
        return 1 - delivery.holdout, ""
    if foreseen.gain is None:
        return 1 - delivery.holdout, "no model knows yet whom this delivery persuades: it goes to everybody"
    if foreseen.gain > delivery.gain.above:
        return 1 - delivery.holdout, f"expected gain {foreseen.gain:.2f}, above {delivery.gain.above:.2f}"
    return delivery.gain.explore, (f"expected gain {foreseen.gain:.2f}, not above {delivery.gain.above:.2f}; "
                                   f"{delivery.gain.explore:.0%} of such users are sent it all the same, to learn of them")


def quiet_until(delivery: Delivery, now: datetime) -> datetime | None:
    """The end of the quiet hours that `now` is in; None outside of them. They may span midnight."""
    if delivery.quiet is None:
        return None
    start, end = delivery.quiet
    local = now.astimezone(delivery.zone)
    inside = start <= local.time() < end if start <= end else local.time() >= start or local.time() < end
    if not inside:
        return None
    until = local.replace(hour=end.hour, minute=end.minute, second=end.second, microsecond=0)
    return (until if until > local else until + timedelta(days=1)).astimezone(now.tzinfo)
