"""Recommendations and alerts held against the truth. Pure; called through the methods of `Truth`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from producers.simulate.planted import ShopperTruth
from schemas.outputs import ChurnAlert, Recommendation

if TYPE_CHECKING:
    from producers.simulate.truth import Truth

DAY_MS = 86_400_000
BOOTSTRAP_SAMPLES = 1_000
BOOTSTRAP_SEED = 0  # the interval is part of the answer: the same input gives the same one
Z_95 = 1.959964
RULE_DAYS = 30.0  # the usual rule of thumb an alert competes with: 30 days without a visit


class TasteShare(msgspec.Struct, frozen=True, kw_only=True):
    """`share` of recommended items in the true taste, with a 95% bootstrap interval over shoppers.

    `random`: the same share for items drawn at random; `popularity`: for as many of the most popular items. Items or
    users that are not of the shop, and devices two shoppers share, are counted and left out.
    """

    share: float
    interval: tuple[float, float]
    random: float
    popularity: float
    recommendations: int
    items: int
    shoppers: int
    unknown_users: int
    shared_devices: int
    unknown_items: int


class CohortAlerts(msgspec.Struct, frozen=True, kw_only=True):
    """Counts for one cohort: shoppers seen by `as_of`, of them left since `since`, of these caught; alerts raised and
    right."""

    shoppers: int
    left: int
    caught: int
    raised: int
    right: int


class AlertQuality(msgspec.Struct, frozen=True, kw_only=True):
    """`precision` = right / raised (alerts); `recall` = caught / left (shoppers who left since `since`, when alerts began
    to be raised); Wilson 95% intervals; NaN-free: 0 of 0 is None. `recall_settled` leaves out those who left less than
    `settle_days` before `as_of`: no silence shows that yet.

    `lead_days` (median, lower and upper quartile) is left_at − raised over caught shoppers: positive was before they left.
    `lead_over_rule_days` is the median by which alerts were ahead of waiting for 30 silent days after the leaving.
    `false_on_anonymous` of the wrong alerts were raised for an anonymous id whose owner has a known one: such an id falls
    silent when its owner identifies.

    `holidays` are absences of shoppers who come back, begun by `as_of`; an alert raised during one is a false one.
    """

    raised: int
    right: int
    precision: float | None
    precision_interval: tuple[float, float] | None
    left: int
    caught: int
    recall: float | None
    recall_interval: tuple[float, float] | None
    left_settled: int
    caught_settled: int
    recall_settled: float | None
    lead_days: tuple[float, float, float] | None
    lead_over_rule_days: float | None
    raised_before_leaving: int
    false_on_anonymous: int
    holidays: int
    holidays_alerted: int
    by_cohort: dict[str, CohortAlerts]
    unknown_users: int
    shared_devices: int


def wilson(hits: int, of: int) -> tuple[float, float] | None:
    """95% interval of a share (Wilson 1927); None for 0 of 0.

    >>> [round(x, 3) for x in wilson(8, 10)]
    [0.49, 0.943]
    """
    if of == 0:
        return None
    p, z2 = hits / of, Z_95**2
    centre = (p + z2 / (2 * of)) / (1 + z2 / of)
    half = Z_95 / (1 + z2 / of) * math.sqrt(p * (1 - p) / of + z2 / (4 * of * of))
    return max(0.0, centre - half), min(1.0, centre + half)


def _share(hits: int, of: int) -> float | None:
    return hits / of if of else None


def _bootstrap(hits: npt.NDArray[np.float64], shown: npt.NDArray[np.float64]) -> tuple[float, float]:
    """95% interval of Σhits/Σshown, shoppers resampled with replacement; hits, shown (U,)."""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    ratios = np.empty(BOOTSTRAP_SAMPLES)
    for sample in range(BOOTSTRAP_SAMPLES):
        drawn = rng.integers(len(hits), size=len(hits))  # (U,)
        ratios[sample] = hits[drawn].sum() / shown[drawn].sum()
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def judge_recommendations(truth: Truth, recommendations: Iterable[Recommendation]) -> TasteShare:
    """See TasteShare. Raises ValueError when nothing is left to judge."""
    popular = np.argsort(-truth.popularity, kind="stable").tolist()
    per_shopper: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])  # number → hits, shown
    random = popularity = 0.0
    judged = unknown_users = shared = unknown_items = 0
    for recommendation in recommendations:
        owners = truth.owners(recommendation.user_id)
        if len(owners) != 1:
            unknown_users += not owners
            shared += bool(owners)
            continue
        mask = truth.mask(owners[0], truth.period(owners[0], recommendation.as_of_ts))
        indexes = [truth.item_index.get(item.item_id) for item in recommendation.items]
        known = [index for index in indexes if index is not None]
        unknown_items += len(indexes) - len(known)
        if not known:
            continue
        judged += 1
        tally = per_shopper[owners[0].number]
        tally[0] += sum(mask[index] for index in known)
        tally[1] += len(known)
        random += len(known) * sum(mask) / len(mask)
        popularity += sum(mask[index] for index in popular[: len(known)])
    if not judged:
        raise ValueError(
            f"no recommendation can be judged: {unknown_users} for unknown users, {shared} for shared devices, "
            f"{unknown_items} unknown items. Is this the truth of the run that made the events?"
        )
    table = np.array(list(per_shopper.values()))  # (U, 2)
    items = int(table[:, 1].sum())
    return TasteShare(
        share=float(table[:, 0].sum()) / items, interval=_bootstrap(table[:, 0], table[:, 1]), random=random / items,
        popularity=popularity / items, recommendations=judged, items=items, shoppers=len(per_shopper),
        unknown_users=unknown_users, shared_devices=shared, unknown_items=unknown_items,
    )


def is_right(shopper: ShopperTruth, alert: ChurnAlert) -> bool:
    """Raised for one who left, and not earlier than the horizon before that."""
    if shopper.left_at_ms is None:
        return False
    return _ms(alert) >= shopper.left_at_ms - alert.horizon_days * DAY_MS


def _ms(alert: ChurnAlert) -> int:
    return round(alert.as_of_ts.timestamp() * 1000)


class _Case:
    """What was said about one shopper up to `as_of`."""

    def __init__(self) -> None:
        self.raises: list[ChurnAlert] = []
        self.latest: dict[str, ChurnAlert] = {}  # by the id it was said about

    def add(self, alert: ChurnAlert) -> None:
        self.latest[alert.user_id] = alert
        if alert.state == "raised":
            self.raises.append(alert)

    def caught_at_ms(self, shopper: ShopperTruth) -> int | None:
        standing = [_ms(alert) for alert in self.latest.values() if alert.state == "raised" and is_right(shopper, alert)]
        return min(standing, default=None)


def _holidays(shopper: ShopperTruth, case: _Case, as_of_ms: int) -> tuple[int, int]:
    begun = [holiday for holiday in shopper.holidays if holiday.from_ms <= as_of_ms]
    alerted = [h for h in begun if any(h.from_ms <= _ms(alert) < h.to_ms for alert in case.raises)]
    return len(begun), len(alerted)


def judge_alerts(
    truth: Truth, alerts: Iterable[ChurnAlert], as_of_ms: int, settle_days: float, since_ms: int = 0
) -> AlertQuality:
    """See AlertQuality. Alerts after `as_of` are left out, alerts said twice (equal ids) counted once; who left before
    `since` is not to be caught."""
    cases: dict[int, _Case] = defaultdict(_Case)
    unknown = shared = 0
    distinct = {alert.alert_id: alert for alert in alerts}
    for alert in sorted(distinct.values(), key=lambda alert: (_ms(alert), alert.alert_id)):
        if _ms(alert) > as_of_ms:
            continue
        owners = truth.owners(alert.user_id)
        if len(owners) == 1:
            cases[owners[0].number].add(alert)
        else:
            unknown += not owners
            shared += bool(owners)
    tallies: dict[str, list[int]] = defaultdict(lambda: [0] * 5)
    leads: list[float] = []
    settled = caught_settled = holidays = holidays_alerted = early = orphaned = 0
    for shopper in truth.shoppers:
        if shopper.joined_at_ms > as_of_ms:
            continue
        case, tally, left_at = cases[shopper.number], tallies[shopper.cohort], shopper.left_at_ms
        wrong = [alert for alert in case.raises if not is_right(shopper, alert)]
        orphaned += sum(shopper.user_id not in (None, alert.user_id) for alert in wrong)
        begun, alerted = _holidays(shopper, case, as_of_ms)
        holidays, holidays_alerted = holidays + begun, holidays_alerted + alerted
        left = left_at is not None and since_ms <= left_at <= as_of_ms
        caught_at = case.caught_at_ms(shopper) if left else None
        for column, count in enumerate((1, left, caught_at is not None, len(case.raises), len(case.raises) - len(wrong))):
            tally[column] += count
        if left_at is not None and left:
            is_settled = left_at <= as_of_ms - settle_days * DAY_MS
            settled += is_settled
            caught_settled += is_settled and caught_at is not None
            if caught_at is not None:
                leads.append((left_at - caught_at) / DAY_MS)
                early += caught_at < left_at
    _, left_n, caught_n, raised_n, right_n = (sum(column) for column in zip([0] * 5, *tallies.values(), strict=True))
    quartiles = np.quantile(leads, [0.5, 0.25, 0.75]) if leads else None
    return AlertQuality(
        raised=raised_n, right=right_n, precision=_share(right_n, raised_n), precision_interval=wilson(right_n, raised_n),
        left=left_n, caught=caught_n, recall=_share(caught_n, left_n), recall_interval=wilson(caught_n, left_n),
        left_settled=settled, caught_settled=caught_settled, recall_settled=_share(caught_settled, settled),
        lead_days=None if quartiles is None else (float(quartiles[0]), float(quartiles[1]), float(quartiles[2])),
        lead_over_rule_days=None if quartiles is None else float(quartiles[0]) + RULE_DAYS,
        raised_before_leaving=early, false_on_anonymous=orphaned, holidays=holidays, holidays_alerted=holidays_alerted,
        by_cohort={cohort: CohortAlerts(shoppers=t[0], left=t[1], caught=t[2], raised=t[3], right=t[4])
                   for cohort, t in sorted(tallies.items())},
        unknown_users=unknown, shared_devices=shared,
    )
