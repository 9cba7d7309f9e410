"""A shop's own decisions about offers as the sink stored them: what might have been shown with which chance, what was, and
what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from producers.datasets.table import DatasetError
from stream.adapters.database.clickhouse import connect
from stream.core.offers.nearness import STEP
from stream.core.offers.offer_policy import TEXT_PREFIX
from stream.settings import Settings

SHOP = "shop"
# Seen, since of what nobody saw nothing can come; and with its window over, or what is still to come would count as nothing.
SQL = """SELECT outcomes.placement, outcomes.user_id, outcomes.offer_id, outcomes.text, decided.candidates, outcomes.about,
    outcomes.groups, outcomes.holdout,
    isNotNull(if(decided.reward = 'order', outcomes.ordered_at, outcomes.clicked_at)) AS rewarded,
    outcomes.served_at >= toDateTime64({since:Int64}, 3, 'UTC')
    AND outcomes.served_at < toDateTime64({until:Int64}, 3, 'UTC') AS within
FROM offer_outcomes AS outcomes INNER JOIN offer_decisions_served AS decided
    ON decided.tenant = outcomes.tenant AND decided.recommendation_id = outcomes.recommendation_id
WHERE outcomes.tenant = {tenant:String} AND ({placement:String} = '' OR outcomes.placement = {placement:String})
    AND isNotNull(outcomes.seen_at) AND decided.broker_time + toIntervalSecond(decided.window_s) <= now64(3)
ORDER BY outcomes.placement, outcomes.served_at, outcomes.recommendation_id"""
ALWAYS_S = (0, 4_102_444_800)  # from 1970 to 2100


class Shown(NamedTuple):
    """One decision that was seen. `chances`: of each offer that might have been; `within`: of the period asked about."""

    user: str
    offer: str
    text: str
    chances: Mapping[str, float]
    about: tuple[str, ...]
    groups: tuple[str, ...]
    holdout: bool
    rewarded: bool
    within: bool

    @property
    def name(self) -> str:
        """A text that a caller gave is called by its words, for its id is a hash of them."""
        return self.text if self.text and self.offer.startswith(TEXT_PREFIX) else self.offer

    @property
    def features(self) -> tuple[str, ...]:
        """What the offer is, but for its nearness to the user: of what was not shown that is not known."""
        return tuple(one for one in self.about if not one.startswith(STEP))


def from_clickhouse(
    settings: Settings, tenant: str, placement: str = "", since: datetime | None = None, until: datetime | None = None
) -> dict[str, Sequence[Shown]]:
    """Decisions by placement, in the order they were served; of placements with some within the period. Raises
    `DatasetError` where there are none, `ClickHouseMissing`."""
    first, last = (given if at is None else int(at.timestamp()) for given, at in zip(ALWAYS_S, (since, until), strict=True))
    client = connect(settings.clickhouse, wait_s=10.0)
    try:
        asked = {"tenant": tenant, "placement": placement, "since": first, "until": last}
        rows = client.query(SQL, parameters=asked).result_rows
    finally:
        client.close()
    found: dict[str, list[Shown]] = {}
    for where, user, offer, text, chances, about, groups, holdout, rewarded, within in rows:
        found.setdefault(where, []).append(Shown(user, offer, text, chances, tuple(about), tuple(groups), bool(holdout),
                                                 bool(rewarded), bool(within)))  # fmt: skip
    judged: dict[str, Sequence[Shown]] = {
        name: some for name, some in found.items() if any(one.within and not one.holdout for one in some)}
    if not judged:
        at = f" at {placement}" if placement else ""
        raise DatasetError(f"tenant {tenant} has no decision about offers{at} in this period that was seen and whose window "
                           "is over: see offer_outcomes in ClickHouse, and send Promotion Viewed and Promotion Clicked with "
                           "the recommendation_id (docs/offers.md)")  # fmt: skip
    return judged
