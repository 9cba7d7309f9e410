"""When a user will buy an item again that they bought before.

The time to the next purchase of an item, as of now, is log-logistic: the odds of having bought it within d days are
exp(x·w) d^s, x what is known of user and item now (Bennett, "Log-logistic regression models for survival data", Applied
Statistics 32, 1983). So the chance within any d rises with d, and the day on which it reaches a threshold is closed form.
Shrinkage is in x: the item's own rate of being bought again (`Links.repeat`) is smoothed towards everybody's, and the pair's
share of the user's orders towards the item's rate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import exp, isfinite, log, log1p

import msgspec
import numpy as np
import numpy.typing as npt

from stream.core.ranking.links import REPEAT_UNKNOWN, Links
from stream.core.user.featurize import Float32
from stream.core.user.state import DAY_MS, ItemStat, UserState

FEATURES = (
    "log_orders", "log_item_silence", "log_order_days", "log_item_repeat", "logit_share", "log_beyond_gap",
    "log_own_gap_ratio",
)  # fmt: skip
SHARE_ORDERS = 4.0  # the item's rate weighs in a pair's share as much as so many orders of the user
GAP_UNKNOWN_DAYS = 30.0  # between the orders of a user with one


class Repurchase(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters: weights of FEATURES, the constant, and the power of the days, which is above 0. `usual_days` lie between
    two purchases of one item by one customer, on average over all."""

    weights: tuple[float, ...]
    constant: float
    shape: float
    usual_days: float = 60.0

    def named(self) -> dict[str, float]:
        """As a manifest holds it."""
        own = {"constant": self.constant, "shape": self.shape, "usual_days": self.usual_days}
        return own | dict(zip(FEATURES, self.weights, strict=True))

    @classmethod
    def from_manifest(cls, values: Mapping[str, float]) -> Repurchase | None:
        """Inverse of `named`; None where nothing was learned. Raises msgspec.ValidationError for what cannot be used.

        >>> even = Repurchase(weights=(0.5,) * len(FEATURES), constant=0.0, shape=1.0)
        >>> Repurchase.from_manifest(even.named()) == even, Repurchase.from_manifest({})
        (True, None)
        """
        if not values:
            return None
        missing = [name for name in (*FEATURES, "constant", "shape", "usual_days") if name not in values]
        if missing:
            raise msgspec.ValidationError(f"repurchase has no {', '.join(missing)}")
        if not (values["shape"] > 0 and values["usual_days"] > 0 and all(isfinite(one) for one in values.values())):
            raise msgspec.ValidationError("repurchase has a number that is out of range")
        weights = tuple(values[name] for name in FEATURES)
        return cls(weights=weights, constant=values["constant"], shape=values["shape"], usual_days=values["usual_days"])

    def log_odds(self, features: Float32) -> npt.NDArray[np.float64]:
        """Log odds of a purchase within one day (P,), of pairs with features (P, F)."""
        return np.asarray(features.astype(np.float64) @ np.asarray(self.weights) + self.constant)

    def p_within(self, features: Float32, days: float) -> npt.NDArray[np.float64]:
        """P(bought again within `days`) (P,).

        >>> even = Repurchase(weights=(0.0,) * len(FEATURES), constant=0.0, shape=1.0)
        >>> even.p_within(np.zeros((1, len(FEATURES)), dtype=np.float32), 3.0).tolist()
        [0.75]
        """
        return np.asarray(1 / (1 + np.exp(-(self.log_odds(features) + self.shape * log(days)))))

    def due_days(self, features: Float32, p: float) -> npt.NDArray[np.float64]:
        """Days until the chance of having bought again is `p` (P,): a reminder before them is in time."""
        return np.asarray(np.exp((log(p / (1 - p)) - self.log_odds(features)) / self.shape))


def repeat_of(known_links: Links) -> Callable[[str], float]:
    """The log share of an item's users who come back for it, of an item the links do not know the usual one. Shares of all
    items rise as a history grows, so they are taken relative to their mean: what was learned earlier still holds."""
    usual = float(known_links.repeat.mean()) if len(known_links.ids) else REPEAT_UNKNOWN
    relative = (known_links.repeat - usual + REPEAT_UNKNOWN).tolist()
    known = dict(zip(known_links.ids, relative, strict=True))
    return lambda item_id: known.get(item_id, REPEAT_UNKNOWN)


def own_gap_days(stat: ItemStat) -> float:
    """The user's own average days between two orders of an item; 0 where none is known.

    >>> own_gap_days(ItemStat(3, 3, 20 * DAY_MS, 20 * DAY_MS, 20 * DAY_MS)), own_gap_days(ItemStat(1, 1, 9, 9, 0))
    (10.0, 0.0)
    """
    return stat.order_span_ms / DAY_MS / (stat.orders - 1) if stat.orders > 1 and stat.order_span_ms > 0 else 0.0


def features(state: UserState, now_ms: int, repeat: Callable[[str], float]) -> tuple[list[str], Float32]:
    """Items the user bought before and what is known of each pair, (P, F) in the order of FEATURES.

    `repeat` gives the log of the share of an item's buyers who come back for it.
    """
    items = [(item_id, stat) for item_id, stat in state.items.items() if stat.orders > 0]
    found = np.zeros((len(items), len(FEATURES)), dtype=np.float32)
    if not items:
        return [], found
    orders = len(state.order_days)
    silence, tenure = (max(0.0, now_ms - ts_ms) / DAY_MS for ts_ms in (state.last_ts_ms, state.first_ts_ms))
    gap = (state.order_days[-1] - state.order_days[0]) / (orders - 1) if orders > 1 else GAP_UNKNOWN_DAYS
    for at, (item_id, stat) in enumerate(items):
        item_silence = max(0.0, now_ms - stat.last_order_ts_ms) / DAY_MS
        log_repeat, repeats = min(repeat(item_id), -1e-3), stat.orders - 1
        share = min((repeats + SHARE_ORDERS * exp(log_repeat)) / (max(orders - 1, repeats) + SHARE_ORDERS), 0.99)
        own_gap = own_gap_days(stat) or (max(0.0, tenure - item_silence) / repeats if repeats else gap)  # at most
        found[at] = (
            log(stat.orders), log1p(item_silence), log1p(orders), log_repeat, log(share / (1 - share)),
            log1p(silence / (gap + 1)), abs(log((item_silence + 1) / (own_gap + 1))),
        )  # fmt: skip
    return [item_id for item_id, _ in items], found
