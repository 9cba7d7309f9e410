"""What stands on `clickwake.offers.v1`, MessagePack: absolute values that replace what stood under their key before.

    #placement/<tenant>/<placement>   PlacementTotals
    <tenant>/<user>                   UserOffers; a tombstone once there is nothing to remember
    #positions                        Positions: what all of these stand for, in the same transaction
"""

from __future__ import annotations

import msgspec

PLACEMENT_PREFIX = b"#placement/"
POSITIONS_KEY = b"#positions"
MICROS = 1_000_000  # money is counted in millionths, so that sums are exact in any order


def placement_key(tenant: str, placement: str) -> bytes:
    """
    >>> placement_key("shop", "home")
    b'#placement/shop/home'
    """
    return PLACEMENT_PREFIX + f"{tenant}/{placement}".encode()


class OfferTotals(msgspec.Struct, array_like=True):
    """What became of one offer at one placement. `days`: day since 1970 → impressions and millionths of money spent, of the
    newest days; `held_*`: of users who are held out, for whom it is the control (in the sums as well). Of decisions that
    were seen and whose window is over, where the control could have been shown: `over_*` of those who are not held out;
    `control_*` of the control, by held-out users who would have been shown this offer (all six missing before 0.10.0)."""

    impressions: int = 0
    clicks: int = 0
    orders: int = 0
    revenue_micros: int = 0
    spent_micros: int = 0
    held_impressions: int = 0
    held_clicks: int = 0
    held_orders: int = 0
    days: dict[int, tuple[int, int]] = {}
    over_impressions: int = 0
    over_clicks: int = 0
    over_orders: int = 0
    control_impressions: int = 0
    control_clicks: int = 0
    control_orders: int = 0


class PlacementTotals(msgspec.Struct, array_like=True):
    """What was learned at one placement, over N features by name, in alphabetical order: `gram` is Σxxᵀ (N·N uint32, row by
    row), `moment` Σrx (N uint32). `left_out`: times a feature or an offer had no room."""

    names: list[str] = []
    gram: bytes = b""
    moment: bytes = b""
    outcomes: int = 0
    rewards: int = 0
    offers: dict[str, OfferTotals] = {}
    left_out: int = 0


class Open(msgspec.Struct, array_like=True):
    """A decision whose reward may still come. Times are the broker's, in ms. `instead`: what a guardrail compares with, see
    `Offered`, and its cap; missing before 0.10.0."""

    placement: str
    offer_id: str
    logged_ms: int
    window_ms: int
    reward: str
    about: tuple[str, ...]
    groups: tuple[str, ...]
    cost_micros: tuple[int, int, int]  # an impression, a click, an order
    cap: tuple[int, int] | None  # count, and within how many ms
    holdout: bool
    done: int = 0  # bits of what has been counted: 1 seen, 2 clicked, 4 ordered
    instead: str = ""
    instead_cap: tuple[int, int] | None = None


class UserOffers(msgspec.Struct, array_like=True):
    """`open`: by recommendation id; `early`: what was done about decisions that are not known yet, (id, bit, when, revenue
    in millionths); `seen`: offer → when it was seen, of offers with a cap, until `seen_until_ms`; by who is held out what
    would have been, where a guardrail compares."""

    open: dict[str, Open] = {}
    early: list[tuple[str, int, int, int]] = []
    seen: dict[str, list[int]] = {}
    seen_until_ms: dict[str, int] = {}


class Positions(msgspec.Struct, array_like=True):
    """Topic → partition → the next offset to read; `clocks_ms`: partition of the events → the time it is read up to;
    `topic_ids`: topic → the id of the one that the offsets are of."""

    offsets: dict[str, dict[int, int]] = {}
    clocks_ms: dict[int, int] = {}
    topic_ids: dict[str, str] = {}
