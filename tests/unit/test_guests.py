"""What somebody did as a guest is theirs once they say who they are: in totals, rules, what is left out, and reasons."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from schemas.events import Event
from stream.alerts import reasons
from stream.core.ranking.recommend import Rules, excluded
from stream.core.ranking.scenarios import again
from stream.core.segments.segment_fields import values_of
from stream.core.user import identity
from stream.core.user.fold import fold
from stream.core.user.state import DAYS_MAX, UserState
from stream.core.user.totals import bought, dealt_with, totals
from tests.support.fakes import DAY_MS, T0_MS, event
from tests.support.read_api import Shop

NOW_MS = T0_MS + 50 * DAY_MS
NAMES = ("Product Viewed", "Product Added", "Order Completed", "Order Refunded", "Products Searched", "Quote Requested")
GUEST: dict[str, Any] = {"userId": None, "anonymousId": "a"}

Row = tuple[int, str, str]


def lived(events: list[Event]) -> UserState:
    """The state of u, once all of it is folded and joined."""
    states: dict[str, UserState] = {}
    for one in events:
        fold(states.setdefault(one.user, UserState()), one, 0, 1 << 60)
        identity.join(states, one)
    return states["u"]


def did(rows: list[Row], *, guest: bool) -> list[Event]:
    """So many ms after the beginning, an event about an item; after all of them its author says who they are."""
    raw = [event(ts_ms=T0_MS + ms, item=None, id=f"m{n}", name=name, lane="import", **(GUEST if guest else {}), properties={
        "products": [{"product_id": one, "price": 2.0, "quantity": 1} for one in {item, "z"}] if "Order" in name else (),
        "product_id": item if "Product " in name or name == "Quote Requested" else None, "query": item})
        for n, (ms, item, name) in enumerate(sorted(rows))]  # fmt: skip
    raw.append(event(ts_ms=T0_MS + 45 * DAY_MS, item=None, id="login", type="identify", event=None, anonymousId="a"))
    return [msgspec.convert(one, Event) for one in raw]


@given(st.lists(st.tuples(st.integers(0, 40 * DAY_MS), st.sampled_from("abc"), st.sampled_from(NAMES)), max_size=30))
def test_a_guest_s_past_counts_as_if_they_had_been_known(rows: list[Row]) -> None:
    guest, known = lived(did(rows, guest=True)), lived(did(rows, guest=False))
    assert totals(guest) == totals(known)
    assert values_of(guest, NOW_MS, 0.0) == values_of(known, NOW_MS, 0.0)
    assert set(bought(guest)) == set(bought(known)) and set(dealt_with(guest)) == set(dealt_with(known))
    assert reasons(guest, 3.0) == reasons(known, 3.0)


class Index:
    """Knows three items."""

    row_of = {"a": 0, "b": 1, "z": 2}  # noqa: RUF012  # read only

    def __len__(self) -> int:
        return 3


def test_what_a_guest_bought_is_not_recommended_but_may_be_bought_again() -> None:
    state, index = lived(did([(0, "a", "Order Completed"), (5, "b", "Product Viewed")], guest=True)), Index()
    left_out = {what: sorted(excluded(state, index, Rules(exclude=what)))  # type: ignore[arg-type]  # all they read of it
                for what in ("none", "bought", "seen")}  # fmt: skip
    assert left_out == {"none": [], "bought": [0, 2], "seen": [0, 1, 2]}
    assert np.flatnonzero(again(state, index)).tolist() == [0, 2]  # type: ignore[arg-type]


async def test_the_read_api_tells_it(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "home")
    states: Any = shop.api.replica
    states.states["t/u"] = lived(did([(0, "i1", "Order Completed"), (DAY_MS, "i2", "Product Viewed")], guest=True))
    known = (await shop.get("/v1/users/u")).json()
    assert (known["events"], known["orders"], known["revenue"], known["active_days"]) == (3, 1, 4.0, 3)
    assert known["first_seen"].startswith(f"{datetime.fromtimestamp(T0_MS / 1000, UTC):%Y-%m-%dT%H:%M:%S}")


def test_days_beyond_those_that_are_kept_are_said_to_be_more() -> None:
    days = list(range(DAYS_MAX))
    assert reasons(UserState(days=days, orders=500), 1.0)[1] == "500 orders in 64 or more active days"
    assert reasons(UserState(days=days[1:], orders=500), 1.0)[1] == "500 orders in 63 active days"
