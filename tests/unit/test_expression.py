"""Expressions over fields: what they mean, and that nothing else can be said with them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core.expressions.expression import CHARS_MAX, ExpressionError, Kind, parse

FIELDS: dict[str, Kind] = {"price": "number", "category": "text", "title": "text", "in_stock": "flag"}
ITEMS = {
    "price": np.array([5.0, 20.0, np.nan]), "category": np.array(["Kitchen", "Garden", ""], dtype=object),
    "title": np.array(["Red Mug", "Spade", "mugwort"], dtype=object), "in_stock": np.array([True, True, False]),
}


@pytest.mark.parametrize(("text", "wanted"), [
    ("price < 10", [True, False, False]),
    ("not price < 10", [False, True, True]),  # a price that is not known is not below anything
    ("5 <= price <= 20", [True, True, False]),
    ("category in ['Kitchen', 'Garden']", [True, True, False]),
    ("category not in ('Kitchen',)", [False, True, True]),
    ("contains(title, 'MUG')", [True, False, True]),
    ("in_stock and price * 2 - 1 > 8", [True, True, False]),
    ("category == 'Garden' or not in_stock", [False, True, True]),
    ("in_stock == False", [False, False, True]),
    ("-price < -6", [False, True, False]),
    ("number(title) > 1", [False, False, False]),
    ("number('7' if in_stock else title) == 7", [True, True, False]),
    ("True", True),
])
def test_conditions(text: str, wanted: object) -> None:
    assert np.asarray(parse(text, FIELDS, "flag").evaluate(ITEMS)).tolist() == wanted


def test_numbers() -> None:
    boost = parse("2 if category == 'Garden' else 1 / price", FIELDS, "number")
    assert np.asarray(boost.evaluate(ITEMS)).tolist()[:2] == [0.2, 2.0]
    assert boost.names == {"category", "price"}


def test_one_value_at_a_time_means_the_same() -> None:
    expression = parse("price < 10 and category in ['Kitchen'] and contains(title, 'mug')", FIELDS, "flag")
    for text in ("(1 if in_stock else 2) in [1]", "contains('mug' if in_stock else title, 'MUG')"):
        assert parse(text, FIELDS, "flag").evaluate({"in_stock": True, "title": ""})
    rows = [{name: values[at] for name, values in ITEMS.items()} for at in range(3)]
    assert [bool(expression.evaluate(row)) for row in rows] == expression.evaluate(ITEMS).tolist()


@pytest.mark.parametrize(("text", "complaint"), [
    ("", "is no expression"),
    ("price <", "is no expression"),
    ("color == 'red'", "there is no field 'color'; there are category, in_stock, price, title"),
    ("price", "gives a number, wanted is a flag"),
    ("price < '10'", "'price' is a number, \"'10'\" a text"),
    ("category < 'b'", "only numbers are smaller"),
    ("price and in_stock", "'price' is a number, wanted is a flag"),
    ("'mug' in title", "after `in` comes a list of literals"),
    ("category in ['a', 1]", "and so must be all of"),
    ("price is None", "comparisons are"),
    ("price ** 9999999 > 1", "arithmetic has + - * /"),
    ("__import__('os').system('true')", "the only functions are contains(text, part), number(text)"),
    ("contains(title, category)", "the part looked for is a text in quotes"),
    ("title.upper() == 'A'", "the only functions are"),
    ("().__class__ == 1", "not among what an expression may have"),
    ("[x for x in (1, 2)]", "not among what an expression may have"),
    ("(lambda: True)()", "the only functions are"),
    ("price == None", "neither a number"),
    ("1 if in_stock else 'a'", "it must be one of them"),
    ("(" * 300 + "price" + ")" * 300 + " < 1", "is no expression"),
    ("in_stock" + " and in_stock" * 110, "at most"),
    ("price < 1 " + " " * CHARS_MAX, "at most"),
])
def test_what_is_wrong_is_said(text: str, complaint: str) -> None:
    with pytest.raises(ExpressionError) as refused:
        parse(text, FIELDS, "flag")
    assert complaint in str(refused.value)


@given(st.text(alphabet="price<>=() andortinscf'\"0123456789.,+-*/[]", max_size=60))
def test_any_text_is_an_expression_or_an_error(text: str) -> None:
    try:
        found = parse(text, FIELDS, "flag")
    except ExpressionError:
        return
    result = np.asarray(found.evaluate(ITEMS))
    assert result.shape in ((), (3,)) and result.dtype == bool
