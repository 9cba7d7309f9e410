"""When a condition turns while time alone moves its values.

Between two moments of which its bounds (`stream.core.expressions.spans`) say that nothing can turn, nothing is looked for;
else the stretch is halved until the turn is found, to the millisecond.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from stream.core.expressions.expression import Expression

SWEEP_MS = 300_000  # who comes and goes within it may be passed over, as the live sweep does
Values = Mapping[str, Any]


def extremes(moments: Sequence[Values]) -> tuple[Values, Values]:
    """The least and the greatest of each value, of moments in their order: all but the chance of churn grow, if anything."""
    chances = [one["churn"] for one in moments if "churn" in one]
    return ({**moments[0], "churn": min(chances)}, {**moments[-1], "churn": max(chances)}) if chances else (
        moments[0], moments[-1])  # fmt: skip


def turning_points(
    condition: Expression, at: Callable[[int], Values], first: tuple[int, Values], last: tuple[int, Values]
) -> Iterator[int]:
    """When a condition becomes another one after the first moment, up to the last; moments are times, ms, with the values
    then, each of which goes in one direction from one to the other. What comes and goes within SWEEP_MS may be passed over.

    >>> from stream.core.expressions.expression import parse
    >>> condition, at = parse("5 < age < 9", {"age": "number"}, "flag"), lambda ms: {"age": ms / 1e9}
    >>> list(turning_points(condition, at, (0, at(0)), (10**11, at(10**11))))
    [5000000001, 9000000000]
    """
    (from_ms, _), (to_ms, _) = first, last
    low, high = condition.bounds(*extremes([first[1], last[1]]))
    if low == high or to_ms <= from_ms:
        return
    if to_ms - from_ms <= SWEEP_MS:
        before, after = bool(condition.evaluate(first[1])), bool(condition.evaluate(last[1]))
        if before != after:
            yield turned(condition, at, from_ms, to_ms, after)
        return
    middle_ms = (from_ms + to_ms) // 2
    middle = (middle_ms, at(middle_ms))
    yield from turning_points(condition, at, first, middle)
    yield from turning_points(condition, at, middle, last)


def turned(condition: Expression, at: Callable[[int], Values], from_ms: int, to_ms: int, last: bool) -> int:
    """A moment at which a condition that differs at the two ends becomes what it is at the later one, `last`."""
    while to_ms - from_ms > 1:
        middle_ms = (from_ms + to_ms) // 2
        if bool(condition.evaluate(at(middle_ms))) == last:
            to_ms = middle_ms
        else:
            from_ms = middle_ms
    return to_ms
