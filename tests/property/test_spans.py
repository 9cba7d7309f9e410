"""A law of spans: wherever the fields are between two values, an expression gives what its bounds hold."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from stream.core.expressions.expression import Kind, parse

FIELDS: dict[str, Kind] = {"a": "number", "b": "number", "flag": "flag", "text": "text"}
numbers = st.one_of(st.sampled_from(["a", "b", "0", "1", "2.5", "30", "quantile(a, 0.5)"]),
                    st.integers(-40, 40).map(str))  # fmt: skip
deeper_numbers = st.recursive(numbers, lambda inner: st.one_of(
    st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda of: f"({' '.join(of)})"), inner.map(lambda of: f"(-{of})"),
    st.tuples(inner, inner).map(lambda of: f"({of[0]} if a < 3 else {of[1]})")), max_leaves=4)  # fmt: skip
comparisons = st.one_of(
    st.tuples(deeper_numbers, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), deeper_numbers).map(" ".join),
    st.tuples(deeper_numbers, st.sampled_from(["in", "not in"])).map(lambda of: f"{of[0]} {of[1]} [1, 2.5]"),
    st.sampled_from(["flag", "text == 'x'", "contains(text, 'x')", "0 < a < b", "('x' if a < 1 else 'y') == text"]),
)
conditions = st.recursive(comparisons, lambda inner: st.one_of(
    st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda of: f"({' '.join(of)})"),
    inner.map(lambda of: f"(not {of})")), max_leaves=4)  # fmt: skip
values = st.one_of(st.integers(0, 40).map(float), st.floats(0, 40))


@given(conditions, values, st.floats(0, 20), values, st.floats(0, 20), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_what_is_between_is_within_the_bounds(
    text: str, a: float, more_a: float, b: float, more_b: float, at_a: float, at_b: float, flag: bool
) -> None:
    condition = parse(text, FIELDS, "flag", {"quantile": lambda field, share: 7.0})
    lows = {"a": a, "b": b, "flag": flag, "text": "x"}
    highs = lows | {"a": a + more_a, "b": b + more_b}
    between = lows | {"a": min(a + at_a * more_a, a + more_a), "b": min(b + at_b * more_b, b + more_b)}
    low, high = condition.bounds(lows, highs)
    assert bool(low) <= bool(condition.evaluate(between)) <= bool(high)
    assert [bool(end) for end in condition.bounds(lows, lows)] == [bool(condition.evaluate(lows))] * 2


@given(deeper_numbers, values, st.floats(0, 20), st.floats(0, 1))
def test_a_number_is_within_its_bounds(text: str, a: float, more: float, at: float) -> None:
    number = parse(text, FIELDS, "number", {"quantile": lambda field, share: 7.0})
    lows, highs = {"a": a, "b": 2.0}, {"a": a + more, "b": 2.0}
    low, high = number.bounds(lows, highs)
    found = float(number.evaluate({"a": min(a + at * more, a + more), "b": 2.0}))
    assert math.isnan(low) or low <= found <= high


def test_most_rules_are_sure_of_most_stretches() -> None:
    """Else a search for turns would look at every moment."""
    def sure(text: str, low: float, high: float) -> bool:
        found = parse(text, FIELDS, "flag", {"quantile": lambda field, share: 7.0}).bounds(
            {"a": low, "b": low + 5}, {"a": high, "b": high + 5})
        return bool(found[0]) == bool(found[1])

    assert sure("a > 14 and b <= 60", 15, 30) and not sure("a > 14", 13, 15)
    assert sure("a <= quantile(a, 0.8)", 0, 7) and sure("2 * a + 1 < 100 / (b + 1)", 0, 1)
