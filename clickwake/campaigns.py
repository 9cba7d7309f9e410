"""`clickwake campaigns`: what each delivery is worth, and whether its model knows whom it persuades."""

from __future__ import annotations

from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from clickwake.answering import asking, rows
from stream.settings import load as load_settings

CAMPAIGNS = "SELECT * FROM delivery_campaigns ORDER BY tenant, delivery"
TENTHS = "SELECT * FROM delivery_gains ORDER BY tenant, delivery, gain_model, tenth"


@asking
def results(*, as_json: bool) -> int:
    """Every campaign whose first week is over, then its tenths by expected gain."""
    campaigns, tenths = rows(load_settings().clickhouse, CAMPAIGNS, TENTHS)
    if as_json:
        print(msgspec.json.encode({"campaigns": campaigns, "tenths": tenths}).decode())
        return 0
    if not campaigns:
        Console().print("no delivery has decided about anybody more than a week ago; they are written in "
                        f"{load_settings().deliveries_file}, see docs/deliveries.md", highlight=False, soft_wrap=True)
        return 0
    Console().print(_table(campaigns, ("delivery", "users", "told", "held_out"), (
        ("returns gained", "returns_gained", "returns_low", "returns_high"),
        ("expected gain", "expected_gain", None, None),
        ("realised gain", "realised_gain", "realised_low", "realised_high"))))  # fmt: skip
    if tenths:
        Console().print(_table(tenths, ("delivery", "gain_model", "tenth", "users", "told"), (
            ("expected uplift", "expected_uplift", None, None), ("uplift", "uplift", "uplift_low", "uplift_high"),
            ("expected gain", "expected_gain", None, None),
            ("realised gain", "realised_gain", "realised_low", "realised_high"))))  # fmt: skip
    return 0


def _table(
    found: list[dict[str, Any]], plain: tuple[str, ...], measured: tuple[tuple[str, str, str | None, str | None], ...]
) -> Table:
    table = Table(*(name.replace("_", " ") for name in plain), *(title for title, *_ in measured), box=None,
                  header_style="dim")  # fmt: skip
    for row in found:
        values = (cell(*(row[name] for name in names if name is not None)) for _, *names in measured)
        table.add_row(*(str(row[name]) for name in plain), *values)
    return table


def cell(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """
    >>> cell(12.345, -1.0, 25.5), cell(0.5), cell(None)
    ('12.35 (-1.00 to 25.50)', '0.50', '–')
    """
    if value is None:
        return "–"
    return f"{value:,.2f}" if low is None or high is None else f"{value:,.2f} ({low:,.2f} to {high:,.2f})"
