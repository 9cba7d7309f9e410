"""`clickwake aggregates`: figures that may be given to outsiders, because none of them is about few people.

k-anonymity (Sweeney, Int. J. of Uncertainty, Fuzziness and Knowledge-Based Systems 10 (2002)): a row is left out, and a
figure within a row is left empty, when fewer than k people are behind it, or behind what is left of its row, which a
subtraction would tell. People are users who allowed analytics; events without an id count for nobody.
What it does not protect from: figures of two days or two values of k, subtracted from each other. Publish one.
"""

from __future__ import annotations

import csv
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from clickwake import query
from stream.settings import load

AGGREGATES = {  # SELECT of groups with the people behind each figure; those of `people` hold all the others
    "items": """
        SELECT product_id AS item, uniqExact(user) AS people, uniqExactIf(user, event = 'Order Completed') AS buyers
        FROM event_products FINAL WHERE tenant = {tenant:String} AND user != '' AND timestamp >= {since:DateTime}
        GROUP BY item""",
    "funnel": """
        SELECT toDate(timestamp) AS day, uniqExact(user) AS people, uniqExactIf(user, event = 'Product Added') AS adding,
               uniqExactIf(user, event = 'Order Completed') AS buyers
        FROM events FINAL WHERE tenant = {tenant:String} AND user != '' AND timestamp >= {since:DateTime} GROUP BY day""",
    "hours": """
        SELECT toDayOfWeek(timestamp) AS weekday, toHour(timestamp) AS hour, uniqExact(user) AS people
        FROM events FINAL WHERE tenant = {tenant:String} AND user != '' AND timestamp >= {since:DateTime}
        GROUP BY weekday, hour""",
}
PEOPLE = "people"


def safe(row: dict[str, Any], k: int) -> dict[str, Any] | None:
    """The row as it may be given away; None for not at all.

    >>> safe({"item": "a", "people": 40, "buyers": 12}, 10), safe({"item": "a", "people": 9}, 10)
    ({'item': 'a', 'people': 40, 'buyers': 12}, None)
    >>> safe({"item": "a", "people": 40, "buyers": 3}, 10), safe({"item": "a", "people": 40, "buyers": 35}, 10)
    ({'item': 'a', 'people': 40, 'buyers': None}, {'item': 'a', 'people': 40, 'buyers': None})
    """
    people, inside = row[PEOPLE], False
    if people < k:
        return None
    kept = {}
    for name, value in row.items():
        hidden = inside and not (k <= value <= people - k)  # also zero: that nobody did is about all of them
        kept[name] = None if hidden else value
        inside = inside or name == PEOPLE
    return kept


def run(name: str, tenant: str, k: int, days: int, *, as_json: bool) -> int:
    """Print the rows that may be given away, as CSV or JSON lines; says on standard error how many were left out."""
    settings, since = load().clickhouse, datetime.now(UTC) - timedelta(days=days)
    try:
        with closing(query.connected(settings)) as client:
            found = client.query(AGGREGATES[name], parameters={"tenant": tenant, "since": since})
    except query.QueryFailed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    names = found.column_names
    kept = [safe(dict(zip(names, values, strict=True)), k) for values in sorted(found.result_rows)]
    rows = [row for row in kept if row is not None]
    write(rows, names, as_json=as_json)
    sys.stderr.write(f"{len(rows)} rows of {len(found.result_rows)}; left out: fewer than {k} people\n")
    return 0


def write(rows: list[dict[str, Any]], names: tuple[str, ...], *, as_json: bool) -> None:
    if as_json:
        for row in rows:
            sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
        return
    out = csv.DictWriter(sys.stdout, names, lineterminator="\n")
    out.writeheader()
    out.writerows(rows)
