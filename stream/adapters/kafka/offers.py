"""What the offers worker has learned and counted, followed whole: for who chooses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from schemas import topics
from schemas.offers import PLACEMENT_PREFIX, POSITIONS_KEY, OfferTotals, PlacementTotals, UserOffers, placement_key
from stream.adapters.kafka.global_reader import GlobalReader, readable
from stream.settings import Settings

_totals, _user = msgspec.msgpack.Decoder(PlacementTotals), msgspec.msgpack.Decoder(UserOffers)
NOTHING_YET = PlacementTotals()


class OffersReader(GlobalReader):
    """Keeps the newest of everything; users as the bytes they were, some 300 each."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, topics.OFFERS.name(settings.kafka.topic_prefix), self._note, committed=True)
        self._users: dict[bytes, bytes] = {}
        self._placements: dict[bytes, PlacementTotals] = {}
        self._spent: dict[str, dict[str, OfferTotals]] = {}  # tenant → offer → at all placements; made when asked for

    def totals(self, tenant: str, placement: str) -> PlacementTotals:
        """The same object until something has changed."""
        return self._placements.get(placement_key(tenant, placement), NOTHING_YET)

    def spent(self, tenant: str) -> Mapping[str, OfferTotals]:
        """Each offer's sums over all placements."""
        found = self._spent.get(tenant)
        if found is None:
            found = self._spent[tenant] = {}
            for name, totals in self._placements.items():
                if name.startswith(placement_key(tenant, "")):
                    for offer, one in totals.offers.items():
                        found[offer] = _sum(found.get(offer, OfferTotals()), one)
        return found

    def seen(self, user_key: bytes) -> Mapping[str, list[int]]:
        """When the user saw offers that have a cap: offer → times, in ms."""
        value = self._users.get(user_key)
        return {} if value is None else _user.decode(value).seen

    def _note(self, records: list[Any]) -> None:
        readable(records, lambda one: self._note_one(one.key or b"", one.value))

    def _note_one(self, name: bytes, value: bytes | None) -> None:
        if name.startswith(PLACEMENT_PREFIX):
            tenant = name[len(PLACEMENT_PREFIX) :].decode().partition("/")[0]
            self._placements[name] = _totals.decode(value or b"")
            self._spent.pop(tenant, None)
        elif value is None:
            self._users.pop(name, None)
        elif name != POSITIONS_KEY:
            _user.decode(value)  # kept as bytes, and decoded again when somebody asks for an offer
            self._users[name] = value


def _sum(one: OfferTotals, other: OfferTotals) -> OfferTotals:
    days = {day: (one.days.get(day, (0, 0))[0] + other.days.get(day, (0, 0))[0],
                  one.days.get(day, (0, 0))[1] + other.days.get(day, (0, 0))[1])
            for day in sorted({*one.days, *other.days})}  # fmt: skip
    return OfferTotals(
        impressions=one.impressions + other.impressions, clicks=one.clicks + other.clicks, orders=one.orders + other.orders,
        revenue_micros=one.revenue_micros + other.revenue_micros, spent_micros=one.spent_micros + other.spent_micros,
        held_impressions=one.held_impressions + other.held_impressions, held_clicks=one.held_clicks + other.held_clicks,
        held_orders=one.held_orders + other.held_orders, days=days,
    )  # fmt: skip
