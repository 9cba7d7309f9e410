"""Parameters of the mixture that ranks: how much each part counts for a user, and what lifts an item.

P(next = i | user) ∝ boost(i) · Σ_k share_k(user) · p_k(i | user), where every p_k is a distribution over items, the shares
are a softmax of the user's features, and the boost is log-linear in the item's features, with other weights for items the
user has dealt with. A mixture of experts (Jacobs et al., "Adaptive mixtures of local experts", 1991) whose experts are
counts, learned links and the user encoder: since the terms are added, a score splits exactly by part and by event.
Fitted by training/recommend/blend.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from stream.core.user.featurize import Float32

AGAIN_DAYS = (7.0, 30.0, 120.0, 400.0)  # half-lives of what the user dealt with before
AGAIN_LOG_DAYS = 120.0
PARTS = (
    "encoder", *(f"again_{days:.0f}" for days in AGAIN_DAYS), "again_log", "follows", "together", "rules",
    "popular_3", "popular_14", "popular_60",
)  # fmt: skip
POPULAR = PARTS.index("popular_3")  # the last three are of the live counts, the same for every user
USER_FEATURES = ("log_days", "log_items", "log_silence_days", "repeat_share")
ITEM_FEATURES = ("trend_short", "trend_long", "level", "repeat")
GATES = ("new", "known")  # items the user has not dealt with, and those they have
BOOST_LOG_MAX = 5.0
ABSENT = -60.0  # logit of a part that has no say
VALUE_MAX = 1e4  # of one number: beyond this it is no weight but a mistake

_DEFAULT_SHARES = {
    "encoder": 1.0, "again_30": 0.5, "again_log": 1.0, "rules": 1.0, "popular_14": 0.0,
}  # before anything is fitted: all have a say, the user's own dealings most


@dataclass(frozen=True)
class Blend:
    """shares (K, 1 + U): logits of the parts, a constant and a weight for each user feature; boosts (2, 1 + I)."""

    shares: Float32
    boosts: Float32

    @classmethod
    def from_manifest(cls, values: dict[str, float]) -> Blend:
        """From names such as `encoder`, `encoder.log_days`, `new.trend_short`; what is not named keeps its default.

        Raises msgspec.ValidationError for a name nobody knows or a value that cannot be.

        >>> Blend.from_manifest({"encoder": 2.0}).shares[0, 0]
        np.float32(2.0)
        """
        shares, boosts = _default_shares(), np.zeros((len(GATES), 1 + len(ITEM_FEATURES)), dtype=np.float32)
        for name, value in values.items():
            owner, _, feature = name.partition(".")
            if owner in PARTS and (not feature or feature in USER_FEATURES):
                shares[PARTS.index(owner), 1 + USER_FEATURES.index(feature) if feature else 0] = value
            elif owner in GATES and (not feature or feature in ITEM_FEATURES):
                boosts[GATES.index(owner), 1 + ITEM_FEATURES.index(feature) if feature else 0] = value
            else:
                raise msgspec.ValidationError(f"the blend has no {name!r}")
            if not abs(value) <= VALUE_MAX:
                raise msgspec.ValidationError(f"the blend's {name!r} is {value}, at most ±{VALUE_MAX:g} makes sense")
        return cls(shares, boosts)

    def named(self) -> dict[str, float]:
        """Inverse of `from_manifest`."""
        found: dict[str, float] = {}
        for owners, features, values in ((PARTS, USER_FEATURES, self.shares), (GATES, ITEM_FEATURES, self.boosts)):
            for owner, row in zip(owners, values.tolist(), strict=True):
                found |= {f"{owner}.{name}" if name else owner: round(value, 6)
                          for name, value in zip(("", *features), row, strict=True)}
        return found

    def only(self, *parts: str) -> Blend:
        """The same with no other parts and no boosts: an ablation."""
        shares = self.shares.copy()
        for at, part in enumerate(PARTS):
            if part not in parts:
                shares[at] = 0.0
                shares[at, 0] = ABSENT
        return Blend(shares, np.zeros_like(self.boosts))

    def without(self, *parts: str) -> Blend:
        """The same without some parts: an ablation."""
        shares = self.shares.copy()
        for part in parts:
            shares[PARTS.index(part)] = 0.0
            shares[PARTS.index(part), 0] = ABSENT
        return Blend(shares, self.boosts)

    def shares_of(self, features: Float32) -> Float32:
        """(K,) shares of a user with features (U,); they add up to 1."""
        logits = self.shares[:, 0] + self.shares[:, 1:] @ features
        weights = np.exp(logits - logits.max())
        return np.asarray(weights / weights.sum(), dtype=np.float32)

    def boosts_of(self, features: Float32) -> Float32:
        """(2, N) factors of items with features (N, I): for users who have not dealt with them, and for those who have."""
        logs = self.boosts[:, :1] + self.boosts[:, 1:] @ features.T
        return np.asarray(np.exp(np.clip(logs, -BOOST_LOG_MAX, BOOST_LOG_MAX)), dtype=np.float32)


def _default_shares() -> Float32:
    shares = np.zeros((len(PARTS), 1 + len(USER_FEATURES)), dtype=np.float32)
    shares[:, 0] = [_DEFAULT_SHARES.get(part, ABSENT) for part in PARTS]
    return shares
