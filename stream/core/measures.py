"""Counts that a rule words for itself: `count("Product Viewed", category == "garden", days=7) >= 3`.

They are taken over the touches that a state keeps, RING_TOUCHES_MAX of them: a user who did more within the window is
counted up to there. What an item is (its category, brand, …) is what the catalog says now.

    count(event, condition, days=…)      touches of that kind
    distinct(event, condition, days=…)   different items among them
    spent(condition, days=…)             money of ordered lines, price × quantity

`condition` is about one touch and may be left out, as may `days`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from schemas.catalog import Item
from stream.core.expression import Expression, ExpressionError, Kind, parse
from stream.core.fold import KIND_OF_NAME
from stream.core.state import DAY_MS, Touch, UserState
from stream.core.state import Kind as Did

What = Literal["count", "distinct", "spent"]
Catalog = Callable[[str], Item | None]
FUNCTIONS: tuple[What, ...] = ("count", "distinct", "spent")
DAYS_MAX = 3_650
FIELDS: Mapping[str, Kind] = MappingProxyType({
    "item_id": "text", "title": "text", "brand": "text", "category": "text", "price": "number", "value": "number",
})  # fmt: skip  # `value`: price × quantity as the event said it; the others are the catalog's
_UNKNOWN = Item(item_id="-", tenant="-")
_TYPES: Mapping[Kind, Any] = MappingProxyType({"text": object, "number": np.float64, "flag": np.bool_})


class Measure(NamedTuple):
    """`name` is how it is written, and the field that rules read it by. `window_ms` 0: of all touches that are kept."""

    name: str
    what: What
    kind: Did
    condition: Expression | None
    window_ms: int


def no_catalog(item_id: str) -> None:
    """Knows no item."""


def read(node: ast.Call) -> Measure:
    """What a call in a rule asks for. Raises ExpressionError."""
    name = ast.unparse(node)
    what = cast(What, cast(ast.Name, node.func).id)
    arguments = list(node.args)
    kind = Did.ORDER if what == "spent" else _kind(name, arguments.pop(0) if arguments else None)
    if len(arguments) > 1 or any(one.arg != "days" for one in node.keywords) or len(node.keywords) > 1:
        first = "" if what == "spent" else '"Product Viewed", '
        raise ExpressionError(f"{name!r}: write {what}({first}condition, days=7); condition and days may be left out")
    days = node.keywords[0].value if node.keywords else None
    condition = None
    if arguments:
        try:
            condition = parse(ast.unparse(arguments[0]), FIELDS, "flag")
        except ExpressionError as error:
            raise ExpressionError(f"{name!r}, of one event's item: {error}") from error
    return Measure(name, what, kind, condition, 0 if days is None else _window_ms(name, days))


def _kind(name: str, node: ast.expr | None) -> Did:
    said = node.value if isinstance(node, ast.Constant) else None
    if said not in KIND_OF_NAME:
        raise ExpressionError(f"{name!r}: the first is the name of an event about items, one of "
                              f"{', '.join(repr(one) for one in KIND_OF_NAME)}")  # fmt: skip
    return KIND_OF_NAME[said]


def _window_ms(name: str, node: ast.expr) -> int:
    days = node.value if isinstance(node, ast.Constant) else None
    if isinstance(days, bool) or not isinstance(days, int | float) or not 0 < days <= DAYS_MAX:
        raise ExpressionError(f"{name!r}: days is a number above 0, up to {DAYS_MAX}, for example days=7")
    return round(days * DAY_MS)


def measured(state: UserState, now_ms: int, measures: Iterable[Measure], catalog: Catalog) -> dict[str, float]:
    """Each measure's value at a time.

    >>> state = UserState(ring=[Touch(5, "m1", "i", Did.ORDER, 30.0), Touch(9, "m2", "j", Did.ORDER, 12.0)])
    >>> call = ast.parse("spent(value > 20, days=1)", mode="eval").body
    >>> measured(state, 10, [read(call)], no_catalog)
    {'spent(value > 20, days=1)': 30.0}
    """
    history = state.history()
    return {one.name: _measure(history, now_ms, one, catalog) for one in measures}


def _measure(history: list[Touch], now_ms: int, measure: Measure, catalog: Catalog) -> float:
    from_ms = now_ms - measure.window_ms if measure.window_ms else 0
    about = [touch for touch in history if touch.kind == measure.kind and from_ms <= touch.ts_ms <= now_ms]
    if about and measure.condition is not None:
        values = {name: _column(about, name, catalog) for name in measure.condition.names}
        holds = np.broadcast_to(measure.condition.evaluate(values), len(about)).tolist()
        about = [touch for touch, wanted in zip(about, holds, strict=True) if wanted]
    if measure.what == "spent":
        return sum(touch.value for touch in about)
    return float(len(about) if measure.what == "count" else len({touch.item_id for touch in about}))


def _column(about: list[Touch], name: str, catalog: Catalog) -> Any:
    """A field of the touches (T,)."""
    if name == "value":
        return np.array([touch.value for touch in about])
    if name == "item_id":
        return np.array([touch.item_id for touch in about], dtype=object)
    found = [getattr(catalog(touch.item_id) or _UNKNOWN, name) for touch in about]
    column = np.empty(len(about), dtype=_TYPES[FIELDS[name]])
    column[:] = [np.nan if one is None else one for one in found] if name == "price" else found
    return column
