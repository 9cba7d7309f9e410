"""`clickwake aggregates`: figures that may be given to outsiders, because none of them is about few people.

k-anonymity (Sweeney, Int. J. of Uncertainty, Fuzziness and Knowledge-Based Systems 10 (2002)): a row is left out, and a
figure within a row is left empty, when fewer than k people are behind it, or behind what is left of its row, which a
subtraction would tell. People are users who allowed analytics; events without an id count for nobody.
What it does not protect from: figures of two days or two values of k, subtracted from each other. Publish one.

With `--epsilon` instead: differential privacy at the level of users (Dwork, McSherry, Nissim & Smith 2006). The groups are
public (the catalog's items, all days, all hours), each person counts in a bounded number of them, drawn by a hash, and every
figure gets discrete Laplace noise from OpenDP. Whatever else an outsider knows, they learn little of one person; each
publication spends its epsilon, and epsilons add up.
"""

from __future__ import annotations

import csv
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

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


class Noisy(NamedTuple):
    """What differential privacy asks: groups and flags of each user in each, and all groups there are."""

    groups: tuple[str, ...]
    flags: tuple[str, ...]
    users: str
    public: str


NOISY = {
    "items": Noisy(("item",), ("buyers",), """
        SELECT product_id AS item, user, max(event = 'Order Completed') AS buyers
        FROM event_products FINAL WHERE tenant = {tenant:String} AND user != '' AND timestamp >= {since:DateTime}
        GROUP BY item, user""",
        "SELECT item_id FROM items FINAL WHERE tenant = {tenant:String} AND removed = 0 ORDER BY item_id"),
    "funnel": Noisy(("day",), ("adding", "buyers"), """
        SELECT toDate(timestamp) AS day, user, max(event = 'Product Added') AS adding,
               max(event = 'Order Completed') AS buyers
        FROM events FINAL WHERE tenant = {tenant:String} AND user != '' AND timestamp >= {since:DateTime}
        GROUP BY day, user""",
        "SELECT toDate({since:DateTime}) + number FROM numbers(dateDiff('day', {since:DateTime}, now()) + 1)"),
    "hours": Noisy(("weekday", "hour"), (), """
        SELECT DISTINCT toDayOfWeek(timestamp) AS weekday, toHour(timestamp) AS hour, user
        FROM events FINAL WHERE tenant = {tenant:String} AND user != '' AND timestamp >= {since:DateTime}""",
        "SELECT intDiv(number, 24) + 1, modulo(number, 24) FROM numbers(168)"),
}  # fmt: skip


def safe(row: dict[str, Any], k: int) -> dict[str, Any] | None:
    """The row as it may be given away; None for not at all.

    >>> safe({"item": "a", "people": 40, "buyers": 12}, 10), safe({"item": "a", "people": 9}, 10)
    ({'item': 'a', 'people': 40, 'buyers': 12}, None)
    >>> safe({"item": "a", "people": 40, "buyers": 3}, 10), safe({"item": "a", "people": 40, "buyers": 35}, 10)
    ({'item': 'a', 'people': 40, 'buyers': None}, {'item': 'a', 'people': 40, 'buyers': None})
    >>> safe({"day": 1, "people": 90, "adding": 30, "buyers": 29}, 10)  # one who added and did not buy, if buyers did add
    {'day': 1, 'people': 90, 'adding': 30, 'buyers': None}
    """
    people, inside = row[PEOPLE], False
    if people < k:
        return None
    kept: dict[str, Any] = {}
    shown: list[int] = []  # figures of people within the row
    for name, value in row.items():
        # also zero: that nobody did is about all of them; but of two figures alike neither tells more than the other
        tells = inside and not (k <= value <= people - k and all(abs(value - one) >= k or value == one for one in shown))
        kept[name] = None if tells else value
        if inside and not tells:
            shown.append(value)
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


def bounded(noisy: Noisy) -> str:
    """Figures by group in which nobody counts more than `most` times, however much they did."""
    groups = ", ".join(noisy.groups)
    sums = "".join(f", sum({flag}) AS {flag}" for flag in noisy.flags)
    return (f"SELECT {groups}, count() AS {PEOPLE}{sums} FROM (SELECT *, row_number() OVER (PARTITION BY user "  # noqa: S608
            f"ORDER BY cityHash64(user, {groups})) AS nth FROM ({noisy.users})) WHERE nth <= {{most:UInt32}} "
            f"GROUP BY {groups}")  # fmt: skip


def with_noise(counts: list[int], sensitivity: int, epsilon: float) -> list[int]:
    """Counts of which one person changes at most `sensitivity` in all, with noise; none below 0. Raises ImportError without
    the `privacy` extra."""
    import opendp.prelude as dp

    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T=int)), dp.l1_distance(T=int)
    measure = dp.m.make_laplace(*space, scale=sensitivity / epsilon)
    cost: float = measure.map(d_in=sensitivity)  # type: ignore[no-untyped-call]
    assert cost <= epsilon * (1 + 1e-9), "what the library says it costs"
    return [max(0, one) for one in measure(counts)]


def run_noisy(name: str, tenant: str, epsilon: float, most: int, days: int, *, as_json: bool) -> int:
    """Print noisy figures of all groups; each person counts in `most` of them at most."""
    settings, since, noisy = load().clickhouse, datetime.now(UTC) - timedelta(days=days), NOISY[name]
    parameters = {"tenant": tenant, "since": since, "most": most}
    try:
        with closing(query.connected(settings)) as client:
            public = [tuple(row) for row in client.query(noisy.public, parameters=parameters).result_rows]
            found = client.query(bounded(noisy), parameters=parameters).result_rows
    except query.QueryFailed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    width, figures = len(noisy.groups), (PEOPLE, *noisy.flags)
    true = {tuple(row[:width]): row[width:] for row in found}
    flat = [int(value) for group in public for value in true.get(group, (0,) * len(figures))]
    told = with_noise(flat, most * len(figures), epsilon) if flat else []
    rows = [dict(zip((*noisy.groups, *figures), (*group, *told[at * len(figures) : (at + 1) * len(figures)]), strict=True))
            for at, group in enumerate(public)]  # fmt: skip
    write(rows, (*noisy.groups, *figures), as_json=as_json)
    noise = most * len(figures) / epsilon
    sys.stderr.write(f"{len(rows)} rows, epsilon {epsilon:g} spent; each person is in {most} of them at most, "
                     f"noise of about {noise:.0f} each way\n")  # fmt: skip
    return 0


def write(rows: list[dict[str, Any]], names: tuple[str, ...], *, as_json: bool) -> None:
    if as_json:
        for row in rows:
            sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
        return
    out = csv.DictWriter(sys.stdout, names, lineterminator="\n")
    out.writeheader()
    out.writerows(rows)
