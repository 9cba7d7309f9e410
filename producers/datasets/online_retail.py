"""UCI Online Retail (Chen 2015): order lines of a British gift shop, purchases and cancellations only.

Every line becomes one `Order Completed` (`Order Refunded` on a cancellation), so rows and events can be compared one
to one; lines of an invoice share its `order_id`. Times are the shop's wall clock, taken as UTC.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from producers.datasets import table
from producers.datasets.table import Drop, Invalid, Row
from schemas.catalog import Item
from schemas.events import ORDER_COMPLETED, ORDER_REFUNDED, Lane

NAME = "online-retail"
HEADER = ("InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country")
CANCELLATION = "C"  # first letter of the invoice

# Stock codes of postage, carriage, fees, discounts, samples, debts and corrections. 23444 is "Next Day Carriage".
NOT_PRODUCTS = frozenset(
    {"POST", "DOT", "C2", "C3", "23444", "D", "M", "S", "B", "PADS", "CRUK", "AMAZONFEE", "BANK CHARGES"}
)
NOT_PRODUCTS_PREFIXES = ("GIFT", "TEST", "ADJUST")


@functools.lru_cache(maxsize=1024)  # the lines of an invoice follow each other
def _instant(text: str) -> datetime:
    """`2010-12-01 08:26:00`, or `12/1/2010 8:26` as the original file has it."""
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError:
        try:
            return datetime.strptime(text, "%m/%d/%Y %H:%M").replace(tzinfo=UTC)
        except ValueError:
            raise Invalid("InvoiceDate", "format", f"{text[:80]!r} is not a date and time") from None


@functools.lru_cache(maxsize=1024)
def _time(text: str) -> tuple[int, str]:
    instant = _instant(text)
    return int(instant.timestamp() * 1000), instant.strftime("%Y-%m-%dT%H:%M:%SZ")


def _product(fields: list[str]) -> tuple[str, float, float]:
    """(product, quantity, price); raises Drop or Invalid. Codes differ in case from clerk to clerk: 85123a is 85123A."""
    code = table.required(fields[1].strip().upper(), "StockCode")
    quantity, price = table.number(fields[3], "Quantity"), table.number(fields[5], "UnitPrice")
    if code in NOT_PRODUCTS or code.startswith(NOT_PRODUCTS_PREFIXES):
        raise Drop("not_a_product")
    cancelled = fields[0].startswith(CANCELLATION)
    if quantity == 0 or (quantity < 0 and not cancelled):
        raise Drop("adjustment")
    if price <= 0:
        raise Drop("no_price")
    return code, abs(int(quantity) if quantity.is_integer() else quantity), price


def _event(row: int, fields: list[str], tenant: str, lane: Lane) -> tuple[dict[str, Any], int]:
    invoice = table.required(fields[0].strip(), "InvoiceNo")
    ts_ms, timestamp = _time(fields[4])
    product_id, quantity, price = _product(fields)
    customer = fields[6].strip().removesuffix(".0")
    user = {"userId": table.required(customer, "CustomerID")} if customer else {"anonymousId": f"invoice-{invoice}"}
    return {
        "messageId": f"{NAME}:{row}",
        "type": "track",
        "event": ORDER_REFUNDED if invoice.startswith(CANCELLATION) else ORDER_COMPLETED,
        **user,
        "tenant": tenant,
        "lane": lane,
        "timestamp": timestamp,
        "properties": {
            "order_id": invoice,
            "currency": "GBP",
            "revenue": round(quantity * price, 2),
            "products": [{"product_id": product_id, "name": fields[2].strip(), "price": price, "quantity": quantity}],
        },
        "context": {"location": {"country": fields[7]}},
    }, ts_ms


def rows(path: Path, tenant: str = "demo", lane: Lane = "import") -> Iterator[Row]:
    """Every line, in event-time order. Drops: not_a_product, adjustment, no_price."""
    def parse(row: int, fields: list[str]) -> tuple[dict[str, Any], int]:
        return _event(row, fields, tenant, lane)

    return table.in_event_time(path, HEADER, lambda fields: _time(fields[4])[0], parse)


def items(path: Path, tenant: str = "demo") -> Iterator[Item]:
    """The catalog the accepted lines imply: each product's most frequent description and its last price."""
    names: dict[str, Counter[str]] = {}
    prices: dict[str, float] = {}
    for row in rows(path, tenant):
        if isinstance(row, table.Accepted):
            product = row.event["properties"]["products"][0]
            names.setdefault(product["product_id"], Counter())[product["name"]] += 1
            prices[product["product_id"]] = product["price"]
    for item_id, counter in names.items():
        yield Item(item_id=item_id, tenant=tenant, title=counter.most_common(1)[0][0], price=prices[item_id])
