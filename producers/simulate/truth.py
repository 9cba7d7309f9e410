"""The truth of a simulated shop and the checks against it: pure functions of what was planted and what was said.

Definitions (also in `truth.json`):

- **in taste**: the item is among the tenth of the catalog with the highest affinity
  `2.0·department + 1.2·style + 0.6·brand` under the shopper's weights at that time, or one they buy again and again.
  A random item is therefore in taste about 10% of the time.
- **taste share**: of all recommended items, the share in taste of the one they were made for, at `as_of_ts`.
- **right alert**: raised for a shopper who has left, not earlier than the alert's horizon before the leaving.
- **caught**: the shopper has left by `as_of`, and the last thing said about one of their ids is a right alert.
"""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from producers.simulate.planted import (
    LEAVERS,
    BrandFall,
    ItemTruth,
    Line,
    MessRecord,
    Promotion,
    Shop,
    ShopperTruth,
    Strategy,
    Summary,
    TastePeriod,
)
from producers.simulate.verdict import AlertQuality, TasteShare, judge_alerts, judge_recommendations
from schemas.outputs import ChurnAlert, Recommendation

AFFINITY_DEPARTMENT, AFFINITY_STYLE, AFFINITY_BRAND = 2.0, 1.2, 0.6
TASTE_SHARE_OF_CATALOG = 0.1
FILE_LINES, FILE_SUMMARY = "truth.jsonl.gz", "truth.json"

DEFINITIONS = {
    "in_taste": "among the tenth of the catalog with the highest 2.0*department + 1.2*style + 0.6*brand under the "
                "shopper's weights at that time, or an item of one of their repurchase cycles",
    "left": "no visit at or after left_at_ms, ever; cohorts " + ", ".join(LEAVERS),
    "right_alert": "raised for a shopper who left, at or after left_at_ms minus the alert's horizon",
    "caught": "left by as_of, and the latest alert state of one of the shopper's ids is a right raise",
}

Time = datetime | int


class UnknownId(KeyError):
    """The user or item is not of this shop; the message says which."""

    def __str__(self) -> str:
        return str(self.args[0])


def ms_of(time: Time) -> int:
    """Milliseconds since 1970 of a datetime, or of itself.

    >>> ms_of(5)
    5
    """
    return time if isinstance(time, int) else round(time.timestamp() * 1000)


class Truth:
    """What was planted. Read-only; every answer depends on the arguments alone."""

    def __init__(self, shop: Shop, shoppers: Sequence[ShopperTruth], items: Sequence[ItemTruth],
                 promotions: Sequence[Promotion] = (), mess: Sequence[MessRecord] = (),
                 falls: Sequence[BrandFall] = (), strategies: Sequence[Strategy] = ()) -> None:
        self.shop, self.shoppers, self.items = shop, tuple(shoppers), tuple(items)
        self.promotions, self.mess, self.falls = tuple(promotions), tuple(mess), tuple(falls)
        self.strategies = tuple(strategies)
        self.item_index = {item.item_id: i for i, item in enumerate(self.items)}
        self._owners: dict[str, list[ShopperTruth]] = {}
        for shopper in self.shoppers:
            for user in (shopper.user_id, *shopper.anonymous_ids):
                if user is not None:
                    self._owners.setdefault(user, []).append(shopper)
        self._codes = {name: _codes([getattr(item, name) for item in self.items])
                       for name in ("department", "style", "brand")}
        self._masks: dict[tuple[int, int], bytes] = {}
        self.popularity = np.array([item.popularity for item in self.items])  # (I,)

    # ---- who and when

    def owners(self, user: str) -> list[ShopperTruth]:
        """The shoppers behind an id, known or anonymous: two for a shared device, none for a stranger."""
        return self._owners.get(user, [])

    def shopper(self, user: str) -> ShopperTruth:
        """The one shopper behind an id; UnknownId when there is none or more than one."""
        owners = self.owners(user)
        if len(owners) != 1:
            why = "is not an id of this shop" if not owners else "is a shared device: no single shopper is behind it"
            raise UnknownId(f"{user!r} {why}; was the truth written by the same run as the events?")
        return owners[0]

    def period(self, shopper: ShopperTruth, ts: Time) -> int:
        """Index of the taste period at `ts`; times before the first period have the first."""
        ts_ms = ms_of(ts)
        return max((i for i, taste in enumerate(shopper.tastes) if taste.from_ms <= ts_ms), default=0)

    # ---- taste

    def affinity(self, taste: TastePeriod) -> npt.NDArray[np.float64]:
        """Affinity of every item, (I,)."""
        result = np.zeros(len(self.items))
        for weight, name, values in ((AFFINITY_DEPARTMENT, "department", taste.departments),
                                     (AFFINITY_STYLE, "style", taste.styles), (AFFINITY_BRAND, "brand", taste.brands)):
            names, codes = self._codes[name]
            result += weight * np.array([values.get(value, 0.0) for value in names])[codes]
        return result

    def mask(self, shopper: ShopperTruth, period: int) -> bytes:
        """One byte an item, 1 when it is in taste; ties are broken by the catalog's order."""
        key = shopper.number, period
        found = self._masks.get(key)
        if found is None:
            best = np.argsort(-self.affinity(shopper.tastes[period]), kind="stable")
            mask = np.zeros(len(self.items), dtype=np.uint8)
            mask[best[: max(1, round(TASTE_SHARE_OF_CATALOG * len(self.items)))]] = 1
            for cycle in shopper.cycles:
                mask[self.item_index[cycle.item_id]] = 1
            found = self._masks[key] = mask.tobytes()
        return found

    def mask_of(self, user: str, ts: Time) -> bytes:
        """`mask` of the shopper behind an id at `ts`; raises UnknownId."""
        shopper = self.shopper(user)
        return self.mask(shopper, self.period(shopper, ts))

    def in_taste(self, user: str, item: str, ts: Time) -> bool:
        """Whether the item is in the true taste of the shopper behind `user` at `ts`; raises UnknownId."""
        index = self.item_index.get(item)
        if index is None:
            raise UnknownId(f"{item!r} is not an item of this shop; was the truth written by the same run as the events?")
        return bool(self.mask_of(user, ts)[index])

    # ---- verdicts

    def taste_share(self, recommendations: Iterable[Recommendation]) -> TasteShare:
        """How well recommendations hit true tastes, beside random and popular items; see verdict.TasteShare."""
        return judge_recommendations(self, recommendations)

    def alert_quality(self, alerts: Iterable[ChurnAlert], as_of: Time, *, settle_days: float = 14.0,
                      since: Time = 0) -> AlertQuality:
        """How well churn alerts up to `as_of` met those who left since `since`; see verdict.AlertQuality."""
        return judge_alerts(self, alerts, ms_of(as_of), settle_days, ms_of(since))

    # ---- file

    def with_mess(self, mess: Sequence[MessRecord]) -> Truth:
        """The same truth with what was done to the events on their way."""
        return Truth(self.shop, self.shoppers, self.items, self.promotions, mess, self.falls, self.strategies)

    def summary(self) -> Summary:
        return Summary(
            shop=self.shop,
            cohorts=_counts(shopper.cohort for shopper in self.shoppers),
            identities=_counts(shopper.identity for shopper in self.shoppers),
            departments=_counts(item.department for item in self.items),
            styles=_counts(item.style for item in self.items),
            taste_changes=sum(len(shopper.tastes) - 1 for shopper in self.shoppers),
            left=sum(shopper.left_at_ms is not None for shopper in self.shoppers),
            mess=_counts(record.what for record in self.mess),
            definitions=DEFINITIONS,
        )

    def with_falls(self, falls: Sequence[BrandFall]) -> Truth:
        """The same, and what goes bad."""
        return Truth(self.shop, self.shoppers, self.items, self.promotions, self.mess, falls, self.strategies)

    def with_strategies(self, strategies: Sequence[Strategy]) -> Truth:
        """The same, and the offers under which orders are made."""
        return Truth(self.shop, self.shoppers, self.items, self.promotions, self.mess, self.falls, strategies)

    def save(self, folder: Path) -> None:
        """Writes `truth.jsonl.gz` and `truth.json`; equal truths give equal bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        encoder = msgspec.json.Encoder()
        rows: list[Line] = [*self.shoppers, *self.items, *self.promotions, *self.falls, *self.strategies,
                            *self.mess]
        content = b"".join(encoder.encode(row) + b"\n" for row in rows)
        (folder / FILE_LINES).write_bytes(gzip.compress(content, compresslevel=6, mtime=0))
        (folder / FILE_SUMMARY).write_bytes(msgspec.json.format(encoder.encode(self.summary()), indent=2) + b"\n")

    @classmethod
    def load(cls, folder: Path) -> Truth:
        """What `save` wrote. Raises FileNotFoundError, or msgspec.ValidationError naming the field."""
        summary = msgspec.json.decode((folder / FILE_SUMMARY).read_bytes(), type=Summary)
        decoder = msgspec.json.Decoder(Line)
        rows = [decoder.decode(line) for line in gzip.decompress((folder / FILE_LINES).read_bytes()).splitlines()]
        return cls(
            summary.shop,
            [row for row in rows if isinstance(row, ShopperTruth)],
            [row for row in rows if isinstance(row, ItemTruth)],
            [row for row in rows if isinstance(row, Promotion)],
            [row for row in rows if isinstance(row, MessRecord)],
            [row for row in rows if isinstance(row, BrandFall)],
            [row for row in rows if isinstance(row, Strategy)],
        )


def _codes(values: list[str]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The distinct values, and for each item (I,) which one it has."""
    names = sorted(set(values))
    number = {name: i for i, name in enumerate(names)}
    return names, np.array([number[value] for value in values], dtype=np.int64)


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))
