"""Counts that a rule words for itself: `count("Product Viewed", category == "garden", days=7) >= 3`.

Events about items are counted over the touches that a state keeps, RING_TOUCHES_MAX of them and ORDERED_TOUCHES_MAX older
ordered lines, any other event over the ACTIVITIES_MAX that it keeps: a user who did more within the window is counted up to
there. What an item is (its category, brand, …) is what the catalog says now.

    count(event, condition, days=…)      touches of that kind; or how often the event came
    distinct(event, condition, days=…)   different items among them; or different texts
    spent(condition, days=…)             money of ordered lines, price × quantity

`condition` is about one touch, or one event's text and `property("…")`, and may be left out, as may `days`.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from schemas import events as names
from schemas.catalog import Item
from stream.core.expressions.expression import Expression, ExpressionError, Kind, parse
from stream.core.expressions.spans import ANY_NUMBER, Span
from stream.core.user.fold import COUNTED_TYPES, KIND_OF_NAME
from stream.core.user.state import (
    ACTIVITIES_MAX,
    DAY_MS,
    ORDERED_TOUCHES_MAX,
    RING_TOUCHES_MAX,
    Activity,
    Touch,
    UserState,
)
from stream.core.user.state import Kind as Did

What = Literal["count", "distinct", "spent"]
Catalog = Callable[[str], Item | None]
FUNCTIONS: tuple[What, ...] = ("count", "distinct", "spent")
DAYS_MAX = 3_650
FIELDS: Mapping[str, Kind] = MappingProxyType({
    "item_id": "text", "title": "text", "brand": "text", "category": "text", "price": "number", "value": "number",
})  # fmt: skip  # `value`: price × quantity as the event said it; the others are the catalog's
TEXT_FIELDS: Mapping[str, Kind] = MappingProxyType({"text": "text"})  # of events about no item; and their properties
NAME_CHARS_MAX = 64  # of a trait or property
NEAR = 0.9  # a name as like a known one as that is a slip of the pen (`difflib`)
_KNOWN = {name.casefold(): name for name in (
    *KIND_OF_NAME, *COUNTED_TYPES, names.PRODUCTS_SEARCHED, names.PRODUCT_LIST_VIEWED, names.CART_VIEWED,
    names.CHECKOUT_STARTED, names.PROMOTION_VIEWED, names.PROMOTION_CLICKED, names.COUPON_APPLIED,
)}  # fmt: skip
_UNKNOWN = Item(item_id="-", tenant="-")
_TYPES: Mapping[Kind, Any] = MappingProxyType({"text": object, "number": np.float64, "flag": np.bool_})


class Measure(NamedTuple):
    """`name` is how it is written, and the field that rules read it by. `kind`: of the touches that are counted; None: other
    events are, by their name. `window_ms` 0: of all that are kept."""

    name: str
    what: What
    event: str
    kind: Did | None
    condition: Expression | None
    window_ms: int
    properties: tuple[str, ...] = ()  # that the condition reads, of other events

    def from_ms(self, now_ms: int) -> int:
        """What was done since then counts."""
        return now_ms - self.window_ms if self.window_ms else 0

    def span(self) -> Span:
        """The least and the greatest that it can be of what a state keeps."""
        if self.what == "spent":
            return ANY_NUMBER
        return (0.0, float(ACTIVITIES_MAX if self.kind is None else touches_max(self.kind)))


def touches_max(kind: Did) -> int:
    """How many touches of a kind are remembered at most (`UserState.remembered`)."""
    return RING_TOUCHES_MAX + (ORDERED_TOUCHES_MAX if kind == Did.ORDER else 0)


def no_catalog(item_id: str) -> None:
    """Knows no item."""


def read(node: ast.Call) -> Measure:
    """What a call in a rule asks for. Raises ExpressionError."""
    name = ast.unparse(node)
    what = cast(What, cast(ast.Name, node.func).id)
    arguments = list(node.args)
    event = names.ORDER_COMPLETED if what == "spent" else _event(name, arguments.pop(0) if arguments else None)
    kind = KIND_OF_NAME.get(event)
    if len(arguments) > 1 or any(one.arg != "days" for one in node.keywords) or len(node.keywords) > 1:
        first = "" if what == "spent" else '"Product Viewed", '
        raise ExpressionError(f"{name!r}: write {what}({first}condition, days=7); condition and days may be left out")
    days = node.keywords[0].value if node.keywords else None
    condition, properties = None, set[str]()
    if arguments:
        text = ast.unparse(arguments[0])
        try:
            condition = parse(text, FIELDS, "flag") if kind is not None else parse(
                text, TEXT_FIELDS, "flag", calls={"property": ("text", partial(named, properties))})
        except ExpressionError as error:
            raise ExpressionError(f"{name!r}, of one event's {'text' if kind is None else 'item'}: {error}") from error
    window_ms = 0 if days is None else _window_ms(name, days)
    return Measure(name, what, event, kind, condition, window_ms, tuple(sorted(properties)))


def named(names: set[str], node: ast.Call) -> str:
    """The field that `trait("plan")` or `property("size")` stands for; its name goes into `names`. Raises
    ExpressionError."""
    said = node.args[0].value if len(node.args) == 1 and isinstance(node.args[0], ast.Constant) else None
    function = cast(ast.Name, node.func).id
    if node.keywords or not isinstance(said, str) or not 0 < len(said) <= NAME_CHARS_MAX:
        raise ExpressionError(f"{ast.unparse(node)!r}: write {function}(\"name\"), with a name of up to {NAME_CHARS_MAX} "
                              "characters")  # fmt: skip
    names.add(said)
    return field_of(function, said)


def field_of(function: str, name: str) -> str:
    """The name by which `trait` or `property` of a name is read.

    >>> field_of("trait", "plan")
    "trait('plan')"
    """
    return f"{function}({name!r})"


def _event(name: str, node: ast.expr | None) -> str:
    said = node.value if isinstance(node, ast.Constant) else None
    if not isinstance(said, str) or not said:
        raise ExpressionError(f"{name!r}: the first is the name of an event, for example 'Product Viewed', "
                              "'Products Searched' or 'page'")  # fmt: skip
    near = [_KNOWN[one] for one in difflib.get_close_matches(said.casefold(), _KNOWN, n=1, cutoff=NEAR)]
    if near and said not in _KNOWN.values():
        raise ExpressionError(f"{name!r}: did you mean {near[0]!r}?")
    return said


def _window_ms(name: str, node: ast.expr) -> int:
    days = node.value if isinstance(node, ast.Constant) else None
    if isinstance(days, bool) or not isinstance(days, int | float) or not 0 < days <= DAYS_MAX:
        raise ExpressionError(f"{name!r}: days is a number above 0, up to {DAYS_MAX}, for example days=7")
    return round(days * DAY_MS)


def measured(state: UserState, now_ms: int, measures: Sequence[Measure], catalog: Catalog) -> dict[str, float]:
    """Each measure's value at a time.

    >>> state = UserState(ring=[Touch(5, "m1", "i", Did.ORDER, 30.0), Touch(9, "m2", "j", Did.ORDER, 12.0)])
    >>> call = ast.parse("spent(value > 20, days=1)", mode="eval").body
    >>> measured(state, 10, [read(call)], no_catalog)
    {'spent(value > 20, days=1)': 30.0}
    """
    touches = state.remembered()
    activity = state.activity() if any(one.kind is None for one in measures) else []  # merged, where devices are linked
    return {
        one.name: _of_events(activity, now_ms, one) if one.kind is None else _of_touches(touches, now_ms, one, catalog)
        for one in measures
    }


def _of_events(activity: list[Activity], now_ms: int, measure: Measure) -> float:
    from_ms = measure.from_ms(now_ms)
    about = [one for one in activity if one.event == measure.event and from_ms <= one.ts_ms <= now_ms]
    if measure.condition is not None:
        about = [one for one in about if measure.condition.evaluate({"text": one.text, **_properties(one, measure)})]
    return float(len(about) if measure.what == "count" else len({one.text for one in about}))


def _properties(one: Activity, measure: Measure) -> dict[str, str]:
    said = one.properties or {}
    return {field_of("property", name): said.get(name, "") for name in measure.properties}


def _of_touches(touches: list[Touch], now_ms: int, measure: Measure, catalog: Catalog) -> float:
    from_ms = measure.from_ms(now_ms)
    about = [touch for touch in touches if touch.kind == measure.kind and from_ms <= touch.ts_ms <= now_ms]
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
