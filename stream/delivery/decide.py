"""Whether a message goes out, now, later or never. Pure: times and what was said before are passed in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from schemas.outputs import ChurnAlert, SegmentChange
from stream.delivery.rules import Delivery

Said = ChurnAlert | SegmentChange
Status = Literal["send", "held_out", "capped", "suppressed", "deferred"]


class Verdict(NamedTuple):
    """`until`: when a deferred message is looked at again."""

    status: Status
    until: datetime | None = None


def concerns(delivery: Delivery, said: Said) -> bool:
    """Whether a delivery is about such a message."""
    if delivery.tenant not in (None, said.tenant):
        return False
    if isinstance(said, ChurnAlert):
        return delivery.about == "churn" and said.state == "raised" and said.probability >= delivery.probability_min
    return delivery.about == "segment" and said.segment == delivery.segment and said.change == delivery.change


def decide(
    delivery: Delivery, said: Said, now: datetime, last_sent: Mapping[tuple[str, str], datetime], suppressed: bool
) -> Verdict:
    """`last_sent`: (delivery, tenant/user) → when it last went out, or would have gone to somebody held out."""
    user = f"{said.tenant}/{said.user_id}"
    if suppressed:
        return Verdict("suppressed")
    last = last_sent.get((delivery.name, user))
    if last is not None and now - last < timedelta(days=delivery.cap_days):
        return Verdict("capped")
    if held_out(delivery, user):
        return Verdict("held_out")
    until = quiet_until(delivery, now)
    return Verdict("send") if until is None else Verdict("deferred", until)


def held_out(delivery: Delivery, user: str) -> bool:
    """A hash of delivery and user: the same user stays out of the same delivery.

    >>> from stream.delivery.rules import Delivery
    >>> all_out = Delivery(name="x", channel="c", about="churn", holdout=1.0)
    >>> held_out(all_out, "shop/u1")
    True
    """
    digest = hashlib.blake2b(f"{delivery.name}\x1f{user}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < delivery.holdout


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
