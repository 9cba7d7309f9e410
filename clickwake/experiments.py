"""`clickwake experiments`: the file checked, and the arms beside each other."""

from __future__ import annotations

from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from clickwake.answering import refused, rows
from stream.api.experiments import ExperimentsError, load
from stream.settings import load as load_settings

RESULTS = """SELECT tenant, experiment, arm, users, click_rate, click_low, click_high, order_rate, order_low, order_high
FROM experiment_results ORDER BY tenant, experiment, arm"""


def check(*, as_json: bool) -> int:
    """Whether the file of experiments can be used; 1 when not, with the reason."""
    path = load_settings().experiments_file
    try:
        found = load(path)
    except ExperimentsError as error:
        return refused(error, as_json=as_json)
    if as_json:
        print(msgspec.json.encode({"ok": True, "experiments": found}).decode())
        return 0
    for one in found:
        arms = ", ".join(arm.name for arm in one.arms)
        Console().print(f"{one.name}: {one.scenario}, {one.share:.0%} of users, arms {arms}", highlight=False)
    return 0


def results(*, as_json: bool) -> int:
    """Each arm of each experiment, and what may be said of it against the others."""
    (found,) = rows(load_settings().clickhouse, RESULTS)
    for row in found:
        row["clicks"], row["orders"] = (verdict(row, found, what) for what in ("click", "order"))
    if as_json:
        print(msgspec.json.encode(found).decode())
        return 0
    if not found:
        Console().print("nobody has seen an answer of an experiment yet; they are written in "
                        f"{load_settings().experiments_file}, see docs/experiments.md", highlight=False, soft_wrap=True)
        return 0
    table = Table("experiment", "arm", "users", "click rate", "", "order rate", "", box=None, header_style="dim")
    for row in found:
        rates = (f"{row[f'{what}_rate']:.2%} ({row[f'{what}_low']:.2%} to {row[f'{what}_high']:.2%})" for what in
                 ("click", "order"))  # fmt: skip
        clicks, orders = rates
        table.add_row(row["experiment"], row["arm"], f"{row['users']:,}", clicks, row["clicks"], orders, row["orders"])
    Console().print(table)
    return 0


def verdict(row: dict[str, Any], rows: list[dict[str, Any]], what: str) -> str:
    """`better` or `worse` than every other arm of its experiment, else `no decision`.

    >>> one = {"tenant": "t", "experiment": "e", "arm": "a", "click_low": 0.2, "click_high": 0.3}
    >>> verdict(one, [one, one | {"arm": "b", "click_low": 0.05, "click_high": 0.1}], "click")
    'better'
    """
    others = [one for one in rows if (one["tenant"], one["experiment"]) == (row["tenant"], row["experiment"])
              and one["arm"] != row["arm"]]  # fmt: skip
    if others and all(row[f"{what}_low"] > one[f"{what}_high"] for one in others):
        return "better"
    if others and all(row[f"{what}_high"] < one[f"{what}_low"] for one in others):
        return "worse"
    return "no decision"
