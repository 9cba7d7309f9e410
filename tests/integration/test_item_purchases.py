"""Purchases as the view counts them: as the stream's fold does, and as a plain recomputation does."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np

from schemas import topics
from schemas.events import ORDER_COMPLETED, Event
from stream.core.user.fold import fold
from stream.core.user.state import DAY_MS, UserState
from tests.support.database import Database, on

START = datetime(2026, 1, 5, tzinfo=UTC)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


def line(number: int, user: str, at: datetime, items: list[str], order_id: str | None = None) -> dict[str, Any]:
    """An event of an order: products, one product or none."""
    products: dict[str, Any] = {"products": [{"product_id": item} for item in items]}
    properties = {"product_id": items[0]} if len(items) == 1 else products if items else {}
    return {"messageId": f"m{number}", "type": "track", "event": ORDER_COMPLETED, "userId": user, "tenant": "shop",
            "lane": "import", "timestamp": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "properties": properties | ({"order_id": order_id} if order_id else {})}  # fmt: skip


def some_orders() -> list[dict[str, Any]]:
    """Of 60 users, as they came: lines minutes, hours and days apart, before and after the first that came; with an id, with
    another user's, with one that comes again, without one; of an instant; in one event or in several; some without items."""
    rng = np.random.default_rng(8)
    found: list[dict[str, Any]] = []
    for user in range(60):
        at = START
        for number in range(int(rng.integers(1, 5))):
            at += DAY * float(rng.choice([0.3, 0.9, 1.5, 12.0]))
            ident = (None, f"o{user % 7}", f"o{user}-{number}", f"o{user}-{number // 2}")[int(rng.integers(4))]
            for _ in range(int(rng.integers(1, 5))):
                later = timedelta(minutes=float(rng.choice([0, 0, 1, -3, 200, 1440, 1441, -1500])))
                items = [f"i{item}" for item in rng.integers(0, 4, int(rng.integers(0, 3)))]
                found.append(line(len(found), f"u{user}", at + later, items, ident))
    mixed = [found[at] for at in np.argsort(np.arange(len(found)) + rng.normal(0, 3, len(found)), kind="stable").tolist()]
    again = [one | {"timestamp": line(0, "", START, [])["timestamp"]} for one in mixed[::9]]  # sent twice: the first counts
    return [*mixed, *again]


def plainly(events: list[dict[str, Any]]) -> dict[tuple[str, str], set[int]]:
    """(user, item) → when the orders of it began, in milliseconds."""
    known: set[str] = set()
    began: dict[tuple[str, str], int] = {}
    found: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for one in events:
        if one["messageId"] in known:
            continue
        known.add(one["messageId"])
        properties = one["properties"]
        at_ms = round(datetime.fromisoformat(one["timestamp"]).timestamp() * 1000)
        if "order_id" in properties:
            of = one["userId"], properties["order_id"]
            if of not in began or abs(at_ms - began[of]) > DAY_MS:
                began[of] = at_ms
            at_ms = began[of]
        items = [product["product_id"] for product in properties.get("products", [])] or [properties.get("product_id")]
        for item in items:
            if item:
                found[one["userId"], item].add(at_ms)
    return dict(found)


def test_the_view_counts_purchases_as_the_stream_does(database: Database) -> None:
    events = some_orders()
    database.store(on(topics.EVENTS, events))
    rows = database.rows("SELECT user_id, item_id, arrayMap(t -> toUnixTimestamp64Milli(t), times) FROM item_purchases")
    assert {(user, item): times for user, item, times in rows} == {of: sorted(at) for of, at in plainly(events).items()}
    states: defaultdict[str, UserState] = defaultdict(UserState)
    for one in events:
        event = msgspec.convert(one, Event)
        fold(states[event.user], event, 0, 0)
    stats = {(user, item): stat for user, state in states.items() for item, stat in state.items.items()}
    assert {(user, item): (len(times), times[-1], times[-1] - times[0]) for user, item, times in rows} == {
        of: (stat.orders, stat.last_order_ts_ms, stat.order_span_ms) for of, stat in stats.items()}  # fmt: skip
    assert sum(len(times) > 1 for *_, times in rows) > 50
    ((before,),) = database.rows("SELECT sum(n) FROM (SELECT uniqExact(timestamp) AS n FROM event_products FINAL "
                                 "GROUP BY user, product_id)")  # fmt: skip
    assert before > sum(len(times) for *_, times in rows), "what was counted before"


def test_an_invoice_whose_lines_are_minutes_apart_is_one_purchase_to_the_rival_too(database: Database) -> None:
    """Tea on two lines of an invoice, three minutes apart, every ten days: the average interval is ten days, not five."""
    orders = [line(2 * number + at, "u", START + number * 10 * DAY + at * 3 * MINUTE, ["tea"], f"o{number}")
              for number in range(4) for at in range(2)]  # fmt: skip
    reminder = {"reminder_id": "r", "tenant": "shop", "user_id": "u", "state": "due", "item_id": "tea", "category": "",
                "last_bought_ts": "2026-01-05T00:00:00Z", "interval_days": 10.0, "window_from": "2026-01-06T00:00:00Z",
                "window_to": "2026-01-12T00:00:00Z", "probability": 0.5, "reasons": [], "as_of_ts": "2026-01-06T00:00:00Z",
                "model_version": "v1"}  # fmt: skip
    database.store([*on(topics.EVENTS, orders), *on(topics.REMINDERS, [reminder])])
    found = database.rows("SELECT interval_days, window_from, outcome FROM interval_due ORDER BY window_from")
    assert found == [(10.0, START + days * DAY, outcome) for days, outcome in (
        (7, "bought"), (17, "bought"), (27, "pending"))]  # fmt: skip
