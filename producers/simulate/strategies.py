"""Offers at the checkout of the simulated shop, drawn by lot with chances that depend on the buyer, and what they do to
satisfaction: planted truth for comparing strategies.

No random number is drawn: an order's offer is a hash of the order, so that a world with strategies has the same events as
one without, but for what reviews say and the id that orders carry. A decision is made again from the order it is about.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from producers.simulate.planted import Buyer, Strategy
from schemas import events as names
from schemas.outputs import Decision, Offered, output_id

PLACEMENT = "checkout"
REGULAR_ORDERS = 4  # a buyer with so many orders before is a regular
P_GOOD_RANGE = (0.02, 0.98)  # nobody is certain to like something
DECIDED_BEFORE_S = 1  # the order
WINDOW_MS = 14 * 86_400_000

# Whoever compares rates alone is led astray: vouchers go mostly to newer buyers, express mostly to regular ones.
PLANTED = (
    Strategy(placement=PLACEMENT, offer_id="plain", chance={"newer": 0.3, "regular": 0.3}, p_good_added={}),
    Strategy(placement=PLACEMENT, offer_id="voucher", chance={"newer": 0.4, "regular": 0.2},
             p_good_added={"newer": 0.3, "regular": -0.3}),
    Strategy(placement=PLACEMENT, offer_id="express", chance={"newer": 0.1, "regular": 0.3},
             p_good_added={"newer": -0.3, "regular": 0.3}),
    Strategy(placement=PLACEMENT, offer_id="sample", chance={"newer": 0.2, "regular": 0.2}, p_good_added={}),
)  # fmt: skip


def buyer(orders: int) -> Buyer:
    """What somebody with so many orders before counts as."""
    return "regular" if orders >= REGULAR_ORDERS else "newer"


def drawn(strategies: Sequence[Strategy], who: Buyer, order_id: str) -> Strategy:
    """The offer under which an order is made.

    >>> drawn(PLANTED, "newer", "o7-0-0") == drawn(PLANTED, "newer", "o7-0-0")
    True
    """
    left = int.from_bytes(hashlib.blake2b(f"strategy\x1f{order_id}".encode(), digest_size=8).digest(), "big") / 2**64
    for one in strategies:
        left -= one.chance[who]
        if left < 0:
            return one
    return strategies[-1]


def p_good(before: float, added: float) -> float:
    """Chance of a good review under a strategy.

    >>> p_good(0.9, 0.3), round(p_good(0.9, -0.3), 2)
    (0.98, 0.6)
    """
    return min(P_GOOD_RANGE[1], max(P_GOOD_RANGE[0], before + added))


def recommendation_id(world_id: str, order_id: str) -> str:
    """What an order under an offer sends back."""
    return f"offer-{output_id('simulated', world_id, order_id)}"


def decision(strategies: Sequence[Strategy], event: dict[str, Any]) -> Decision | None:
    """The decision that an order was made under, as the read API would have logged it; None for any other event."""
    ident = event.get("properties", {}).get("recommendation_id", "") if event.get("event") == names.ORDER_COMPLETED else ""
    if not strategies or not ident.startswith("offer-"):
        return None
    order_id = event["properties"]["order_id"]
    who = buyer(int(order_id.rsplit("-", 1)[1]))
    chosen, served_at = drawn(strategies, who, order_id), datetime.fromisoformat(event["timestamp"]).astimezone(UTC)
    return Decision(
        recommendation_id=ident, tenant=event["tenant"], user_id=names.user_of(event),
        scenario="offer", items=(), candidates=len(strategies), as_of_event_id="", as_of_ts=None,
        served_at=served_at - timedelta(seconds=DECIDED_BEFORE_S), model_version="simulated",
        offer=Offered(
            placement=chosen.placement, offer_id=chosen.offer_id, propensity=chosen.chance[who],
            candidates={one.offer_id: one.chance[who] for one in strategies}, refused={}, holdout=False,
            rules_version="simulated", policy_version="simulated", reward="order", window_ms=WINDOW_MS,
            about=("*", f"offer={chosen.offer_id}"), groups=(who,)),
    )  # fmt: skip
