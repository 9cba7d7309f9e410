"""What an expression can be while its fields move between two values: arithmetic on spans.

A span is (low, high), both included; a flag's is (False, True) where it may be either. Rounding of floats keeps order, so
what is computed at two ends holds what is computed anywhere between them. Method: Moore, "Interval Analysis" (1966),
chapter 2.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

Span = tuple[Any, Any]
ANY_NUMBER: Span = (math.nan, math.nan)  # nothing is known, not even whether it is a number
ANY_FLAG: Span = (False, True)
ANY_TEXT: Span = ("", None)
ANY: Mapping[str, Span] = MappingProxyType({"number": ANY_NUMBER, "flag": ANY_FLAG, "text": ANY_TEXT})


def arithmetic(do: Callable[[Any, Any], Any], left: Span, right: Span) -> Span:
    """Of + - * /: the extremes are among the corners, unless the divisor may be nothing.

    >>> arithmetic(operator.mul, (-2.0, 1.0), (3.0, 4.0))
    (-8.0, 4.0)
    """
    if do is np.true_divide and right[0] <= 0 <= right[1]:
        return ANY_NUMBER
    with np.errstate(all="ignore"):
        corners = [do(one, other) for one in left for other in right]
    return ANY_NUMBER if any(math.isnan(corner) for corner in corners) else (min(corners), max(corners))


def compared(do: Callable[[Any, Any], Any], left: Span, right: Span) -> Span:
    """
    >>> compared(operator.lt, (1.0, 2.0), (2.5, 3.0)), compared(operator.lt, (1.0, 2.0), (2.0, 3.0))
    ((True, True), (False, True))
    """
    if any(end is None or (isinstance(end, float) and math.isnan(end)) for end in (*left, *right)):
        return ANY_FLAG
    if do in (operator.eq, operator.ne):
        same = left[0] == left[1] == right[0] == right[1]
        apart = left[1] < right[0] or right[1] < left[0]
        return ANY_FLAG if not (same or apart) else (same == (do is operator.eq),) * 2
    first, second = do(left[1], right[0]), do(left[0], right[1])
    return (first, second) if do in (operator.lt, operator.le) else (second, first)


def joined(join: Callable[[Any, Any], Any], spans: list[Span]) -> Span:
    """Of `and` and `or`.

    >>> joined(np.logical_and, [(False, True), (False, False)])
    (False, False)
    """
    lows, highs = [bool(low) for low, _ in spans], [bool(high) for _, high in spans]
    return (all(lows), all(highs)) if join is np.logical_and else (any(lows), any(highs))


def chosen(test: Span, first: Span, second: Span) -> Span:
    """Of `first if test else second`."""
    if test[0] == test[1]:
        return first if test[0] else second
    ends = (*first, *second)
    if any(isinstance(end, str) for end in ends):
        return first if first == second else ANY_TEXT  # texts have no order
    return ANY_NUMBER if any(math.isnan(end) for end in ends) else (min(ends), max(ends))
