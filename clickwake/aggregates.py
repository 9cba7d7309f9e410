"""`clickwake aggregates`: figures that may be given to outsiders, because none of them is about few people.

k-anonymity (Sweeney, Int. J. of Uncertainty, Fuzziness and Knowledge-Based Systems 10 (2002)): a row is left out, and a
figure within a row is left empty, when fewer than k people are behind it, or behind what is left of its row, which a
subtraction would tell. People are accounts of those who allowed analytics, with what was done on devices that no other
account was on. One person may have many devices: one without an account counts for nobody, unless `guests` are asked
for, and one with several for nobody in any case. What it does not protect from: figures of two days, two values of k, days
and hours of the same time, or with guests and without them, subtracted from each other. Publish one.

With `--epsilon` instead: differential privacy at the level of accounts (Dwork, McSherry, Nissim & Smith 2006). The groups
are public (the catalog's items, all days, all hours), each account counts in a bounded number of them, drawn by a hash,
and every figure gets discrete Laplace noise from OpenDP. Counted is what was done while signed in: whose the rest was may
turn on who else was on the device, and the noise pays for one's own rows alone. Whatever else an outsider knows, they
learn little of one account; each publication spends its epsilon, and epsilons add up.
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

PEOPLE = "people"
PUBLISH_ONE = "publish one: other days, another k, days beside hours, or with --guests and without tell of few, subtracted"


class Figures(NamedTuple):
    """Of which rows of `table` figures are, by SQL: groups by name, who in them has done what, and all groups there are."""

    table: str
    groups: dict[str, str]
    done: dict[str, str]
    public: str


FIGURES = {
    "items": Figures(
        "event_products", {"item": "product_id"}, {"buyers": "event = 'Order Completed'"},
        "SELECT item_id FROM items FINAL WHERE tenant = {tenant:String} AND removed = 0 ORDER BY item_id"),
    "funnel": Figures(
        "events", {"day": "toDate(timestamp)"}, {"adding": "event = 'Product Added'", "buyers": "event = 'Order Completed'"},
        "SELECT toDate({since:DateTime}) + number FROM numbers(dateDiff('day', {since:DateTime}, now()) + 1)"),
    "hours": Figures(
        "events", {"weekday": "toDayOfWeek(timestamp)", "hour": "toHour(timestamp)"}, {},
        "SELECT intDiv(number, 24) + 1, modulo(number, 24) FROM numbers(168)"),
}  # fmt: skip

_ACCOUNTS = "SELECT user_id FROM events WHERE tenant = {tenant:String} AND user_id != ''"

# Accounts, and devices that an account was on: whose they are; nobody's where several were
_KNOWN = """
    SELECT user_id AS user, user_id AS whose FROM events WHERE tenant = {tenant:String} AND user_id != '' GROUP BY user_id
    UNION ALL
    SELECT anonymous_id AS user, if(uniqExact(user_id) = 1, any(user_id), '') AS whose FROM events
    WHERE tenant = {tenant:String} AND user_id != '' AND anonymous_id NOT IN ('', user_id) GROUP BY anonymous_id"""


def sql(figures: Figures, *, bounded: bool) -> str:
    """Of each group how many people, and how many of them have done what. `bounded`: of accounts alone, none of which counts
    in more than `most` groups, however much they did, or changes where another counts."""
    names = ", ".join(figures.groups)
    groups = ", ".join(f"{expression} AS {name}" for name, expression in figures.groups.items())
    done = "".join(f", max({condition}) AS {name}" for name, condition in figures.done.items())
    sums = "".join(f", sum({name}) AS {name}" for name in figures.done)
    told = f"{figures.table} FINAL WHERE tenant = {{tenant:String}} AND timestamp >= {{since:DateTime}} AND user != ''"
    if bounded:
        persons = f"""
        SELECT * FROM (
            SELECT *, row_number() OVER (PARTITION BY person ORDER BY cityHash64(person, {names})) AS nth FROM (
                SELECT {groups}, user AS person{done} FROM {told} AND user IN ({_ACCOUNTS}) GROUP BY {names}, person))
        WHERE nth <= {{most:UInt32}}"""  # noqa: S608  # nothing of anybody's is in it
    else:
        persons = f"""
        SELECT {groups}, if(known.user != '', known.whose, if({{guests:Bool}}, told.user, '')) AS person{done}
        FROM (SELECT * FROM {told}) AS told ANY LEFT JOIN ({_KNOWN}) AS known ON known.user = told.user
        WHERE person != '' GROUP BY {names}, person"""  # noqa: S608
    return f"SELECT {names}, count() AS {PEOPLE}{sums} FROM ({persons}) GROUP BY {names} ORDER BY {names}"  # noqa: S608


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


def run(name: str, tenant: str, k: int, days: int, *, guests: bool, as_json: bool) -> int:
    """Print the rows that may be given away, as CSV or JSON lines; says on standard error how many were left out."""
    settings, since = load().clickhouse, datetime.now(UTC) - timedelta(days=days)
    parameters = {"tenant": tenant, "since": since, "guests": guests}
    try:
        with closing(query.connected(settings)) as client:
            found = client.query(sql(FIGURES[name], bounded=False), parameters=parameters)
    except query.QueryFailed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    names = found.column_names
    kept = [safe(dict(zip(names, values, strict=True)), k) for values in found.result_rows]
    rows = [row for row in kept if row is not None]
    write(rows, names, as_json=as_json)
    sys.stderr.write(f"{len(rows)} rows of {len(found.result_rows)}; left out: fewer than {k} people; {PUBLISH_ONE}\n")
    return 0


def with_noise(counts: list[int], sensitivity: int, epsilon: float) -> list[int]:
    """Counts of which one account changes at most `sensitivity` in all, with noise; none below 0. Raises ImportError without
    the `privacy` extra."""
    import opendp.prelude as dp

    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T=int)), dp.l1_distance(T=int)
    measure = dp.m.make_laplace(*space, scale=sensitivity / epsilon)
    cost: float = measure.map(d_in=sensitivity)  # type: ignore[no-untyped-call]
    assert cost <= epsilon * (1 + 1e-9), "what the library says it costs"
    return [max(0, one) for one in measure(counts)]


def run_noisy(name: str, tenant: str, epsilon: float, most: int, days: int, *, as_json: bool) -> int:
    """Print noisy figures of all groups; each account counts in `most` of them at most."""
    settings, since, asked = load().clickhouse, datetime.now(UTC) - timedelta(days=days), FIGURES[name]
    parameters = {"tenant": tenant, "since": since, "most": most}
    try:
        with closing(query.connected(settings)) as client:
            public = [tuple(row) for row in client.query(asked.public, parameters=parameters).result_rows]
            found = client.query(sql(asked, bounded=True), parameters=parameters).result_rows
    except query.QueryFailed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    width, figures = len(asked.groups), (PEOPLE, *asked.done)
    true = {tuple(row[:width]): row[width:] for row in found}
    flat = [int(value) for group in public for value in true.get(group, (0,) * len(figures))]
    told = with_noise(flat, most * len(figures), epsilon) if flat else []
    rows = [dict(zip((*asked.groups, *figures), (*group, *told[at * len(figures) : (at + 1) * len(figures)]), strict=True))
            for at, group in enumerate(public)]  # fmt: skip
    write(rows, (*asked.groups, *figures), as_json=as_json)
    noise = most * len(figures) / epsilon
    sys.stderr.write(f"{len(rows)} rows, epsilon {epsilon:g} spent; each account is in {most} of them at most, "
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
