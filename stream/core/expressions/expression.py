"""Conditions and numbers over named fields, as people write them: `price < 20 and category in ["Kitchen", "Garden"]`.

Python's own grammar, cut down to literals, names, comparisons, arithmetic, `and or not`, `a if b else c`, `x in [...]` and
`contains(text, "part")`, `number(text)`. Types are checked when the text is read, so that evaluating cannot fail. Values are
numpy arrays of one length, or scalars; the result is of the same kind. Nothing of Python but this is reachable.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from schemas import events
from stream.core.expressions import spans
from stream.core.expressions.spans import ANY, ANY_FLAG, Span

Kind = Literal["number", "text", "flag"]
Values = Mapping[str, Any]
Calls = Mapping[str, tuple[Kind, Callable[[ast.Call], str]]]  # function → what a call gives, and the field it stands for
Bounds = Callable[[Values, Values], Span]
Tables = Mapping[str, Callable[[str, float], float]]  # function of a number field and a share → a constant

CHARS_MAX = 1_000  # of an expression
NODES_MAX = 200

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: np.true_divide,
}  # fmt: skip


class ExpressionError(ValueError):
    """The text is no such expression; the message says what is wrong and where."""


class _Part(NamedTuple):
    kind: Kind
    evaluate: Callable[[Values], Any]
    bounds: Bounds | None = None  # where its fields move; without, nothing is known then


class Expression(NamedTuple):
    """A text that was understood. `names` are the fields it reads. `bounds(lows, highs)`: what `evaluate` can give while
    each field, one value and no array, is anywhere from one to the other, see `stream.core.expressions.spans`."""

    text: str
    kind: Kind
    names: frozenset[str]
    evaluate: Callable[[Values], Any]
    bounds: Bounds


def parse(
    text: str, fields: Mapping[str, Kind], wanted: Kind, tables: Tables = MappingProxyType({}),
    calls: Calls = MappingProxyType({}),
) -> Expression:  # fmt: skip
    """Read an expression over `fields` that gives a `wanted` value; `tables` and `calls` are asked while it is read. Raises
    ExpressionError.

    >>> cheap = parse("price < 5 and not in_stock", {"price": "number", "in_stock": "flag"}, "flag")
    >>> cheap.evaluate({"price": np.array([3.0, 9.0]), "in_stock": np.array([False, False])}).tolist()
    [True, False]
    >>> bool(parse("contains(brand, 'acme')", {"brand": "text"}, "flag").evaluate({"brand": "ACME Ltd"}))
    True
    """
    if len(text) > CHARS_MAX:
        raise ExpressionError(f"an expression has at most {CHARS_MAX} characters, this one {len(text)}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        count = sum(1 for _ in ast.walk(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        where = f" at character {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise ExpressionError(f"{text!r} is no expression{where}: {reason}") from error
    if count > NODES_MAX:
        raise ExpressionError(f"an expression has at most {NODES_MAX} parts, this one {count}")
    reader = _Reader(fields, tables, calls)
    part = reader.read(tree)
    if part.kind != wanted:
        raise ExpressionError(f"{text!r} gives a {part.kind}, wanted is a {wanted}")
    assert part.bounds is not None
    return Expression(text, part.kind, frozenset(reader.names(tree)), part.evaluate, part.bounds)


class _Reader:
    """From syntax to functions, checking types on the way."""

    def __init__(self, fields: Mapping[str, Kind], tables: Tables, calls: Calls) -> None:
        self.fields, self.tables, self.calls = fields, tables, calls
        self._called: dict[ast.Call, str] = {}

    def names(self, node: ast.expr) -> set[str]:
        """The fields that what was read reads."""
        if isinstance(node, ast.Call) and node in self._called:
            return {self._called[node]}
        own = {node.id} if isinstance(node, ast.Name) and node.id in self.fields else set[str]()
        return own.union(*(self.names(one) for one in ast.iter_child_nodes(node) if isinstance(one, ast.expr)))

    def read(self, node: ast.expr) -> _Part:
        readers: dict[type[ast.expr], Callable[[Any], _Part]] = {
            ast.Constant: self._constant, ast.Name: self._name, ast.BoolOp: self._logic, ast.UnaryOp: self._unary,
            ast.BinOp: self._arithmetic, ast.Compare: self._comparison, ast.IfExp: self._choice, ast.Call: self._call,
        }  # fmt: skip
        found = readers.get(type(node))
        if found is None:
            raise ExpressionError(f"{ast.unparse(node)!r} is not among what an expression may have: literals, fields, "
                                  "comparisons, arithmetic, and, or, not, in, if-else, contains(), number()")  # fmt: skip
        part = found(node)
        names, moving = tuple(self.names(node)), part.bounds or (lambda lows, highs: ANY[part.kind])

        def bounds(lows: Values, highs: Values) -> Span:
            if all(lows[name] == highs[name] for name in names):  # then it is what it is, whatever it is made of
                return (part.evaluate(lows),) * 2
            return moving(lows, highs)

        return part._replace(bounds=bounds)

    def _wanted(self, node: ast.expr, *kinds: Kind) -> _Part:
        part = self.read(node)
        if part.kind not in kinds:
            raise ExpressionError(f"{ast.unparse(node)!r} is a {part.kind}, wanted is a {' or '.join(kinds)}")
        return part

    def _constant(self, node: ast.Constant) -> _Part:
        value = node.value
        if isinstance(value, bool):
            return _Part("flag", lambda values: value)
        if isinstance(value, int | float):
            number = float(value) if abs(value) < 1e300 else float("inf")
            return _Part("number", lambda values: number)
        if isinstance(value, str):
            return _Part("text", lambda values: value)
        raise ExpressionError(f"{ast.unparse(node)!r} is neither a number, a text in quotes, True nor False")

    def _name(self, node: ast.Name) -> _Part:
        name = node.id
        if name not in self.fields:
            raise ExpressionError(f"there is no field {name!r}; there are {', '.join(sorted(self.fields))}")
        return _Part(self.fields[name], lambda values: values[name], lambda lows, highs: (lows[name], highs[name]))

    def _logic(self, node: ast.BoolOp) -> _Part:
        read = [self._wanted(one, "flag") for one in node.values]
        parts = [one.evaluate for one in read]
        join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or

        def evaluate(values: Values) -> Any:
            found = parts[0](values)
            for part in parts[1:]:
                found = join(found, part(values))
            return found

        return _Part("flag", evaluate, lambda lows, highs: spans.joined(join, [_span(one, lows, highs) for one in read]))

    def _unary(self, node: ast.UnaryOp) -> _Part:
        if isinstance(node.op, ast.Not):
            flag = self._wanted(node.operand, "flag")
            return _Part("flag", lambda values: np.logical_not(flag.evaluate(values)), lambda lows, highs: spans.compared(
                operator.eq, _span(flag, lows, highs), (False, False)))  # fmt: skip
        if isinstance(node.op, ast.USub):
            number = self._wanted(node.operand, "number")
            return _Part("number", lambda values: -number.evaluate(values), lambda lows, highs: spans.arithmetic(
                operator.sub, (0.0, 0.0), _span(number, lows, highs)))  # fmt: skip
        raise ExpressionError(f"{ast.unparse(node)!r}: write `not` or `-`")

    def _arithmetic(self, node: ast.BinOp) -> _Part:
        do = _ARITHMETIC.get(type(node.op))
        if do is None:
            raise ExpressionError(f"{ast.unparse(node)!r}: arithmetic has + - * /")
        left, right = self._wanted(node.left, "number"), self._wanted(node.right, "number")

        def evaluate(values: Values) -> Any:
            with np.errstate(all="ignore"):  # what is divided by nothing is no number, which compares as False
                return do(left.evaluate(values), right.evaluate(values))

        return _Part("number", evaluate, lambda lows, highs: spans.arithmetic(
            do, _span(left, lows, highs), _span(right, lows, highs)))  # fmt: skip

    def _comparison(self, node: ast.Compare) -> _Part:
        links, left = [], node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            links.append(self._membership(left, op, right) if isinstance(op, ast.In | ast.NotIn)
                         else self._ordered(left, op, right))  # fmt: skip
            left = right

        def evaluate(values: Values) -> Any:
            found = links[0].evaluate(values)
            for link in links[1:]:
                found = np.logical_and(found, link.evaluate(values))
            return found

        return _Part("flag", evaluate, lambda lows, highs: spans.joined(
            np.logical_and, [_span(one, lows, highs) for one in links]))  # fmt: skip

    def _ordered(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> _Part:
        do = _COMPARE.get(type(op))
        if do is None:
            raise ExpressionError(f"{ast.unparse(left)!r}: comparisons are == != < <= > >= in, not in")
        first, second = self.read(left), self.read(right)
        if first.kind != second.kind:
            raise ExpressionError(f"{ast.unparse(left)!r} is a {first.kind}, {ast.unparse(right)!r} a {second.kind}: they "
                                  "cannot be compared")  # fmt: skip
        if first.kind != "number" and not isinstance(op, ast.Eq | ast.NotEq):
            raise ExpressionError(f"{ast.unparse(left)!r} is a {first.kind}: only numbers are smaller or larger")
        return _Part("flag", lambda values: do(first.evaluate(values), second.evaluate(values)), lambda lows, highs:
                     spans.compared(do, _span(first, lows, highs), _span(second, lows, highs)))  # fmt: skip

    def _membership(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> _Part:
        if not isinstance(right, ast.List | ast.Tuple | ast.Set) or not all(isinstance(e, ast.Constant) for e in right.elts):
            raise ExpressionError(f"{ast.unparse(right)!r}: after `in` comes a list of literals; contains(text, part) looks "
                                  "into a text")  # fmt: skip
        part, among = self.read(left), [self.read(one) for one in right.elts]
        if any(one.kind != part.kind for one in among):
            raise ExpressionError(f"{ast.unparse(left)!r} is a {part.kind}, and so must be all of {ast.unparse(right)}")
        wanted = {one.evaluate({}) for one in among}
        inside = isinstance(op, ast.In)
        return _Part("flag", lambda values: _each(part.evaluate(values), lambda value: (value in wanted) == inside),
                     lambda lows, highs: _among(_span(part, lows, highs), wanted, inside))  # fmt: skip

    def _choice(self, node: ast.IfExp) -> _Part:
        test = self._wanted(node.test, "flag")
        first, second = self.read(node.body), self.read(node.orelse)
        if first.kind != second.kind:
            raise ExpressionError(f"{ast.unparse(node)!r} gives a {first.kind} or a {second.kind}: it must be one of them")

        def evaluate(values: Values) -> Any:
            found = np.where(test.evaluate(values), first.evaluate(values), second.evaluate(values))
            return found if found.ndim else found.item()

        return _Part(first.kind, evaluate, lambda lows, highs: spans.chosen(
            *(_span(one, lows, highs) for one in (test, first, second))))  # fmt: skip

    def _call(self, node: ast.Call) -> _Part:
        if isinstance(node.func, ast.Name) and node.func.id in self.tables:
            return self._looked_up(node, node.func.id)
        if isinstance(node.func, ast.Name) and node.func.id in self.calls:
            kind, read = self.calls[node.func.id]
            name = self._called[node] = read(node)
            return _Part(kind, lambda values: values[name], lambda lows, highs: (lows[name], highs[name]))
        arguments = {"contains": 2, "number": 1}
        if not isinstance(node.func, ast.Name) or arguments.get(node.func.id) != len(node.args) or node.keywords:
            there_are = ["contains(text, part)", "number(text)", *(f"{name}(field, share)" for name in self.tables),
                         *(f"{name}(…)" for name in self.calls)]  # fmt: skip
            raise ExpressionError(f"{ast.unparse(node)!r}: the only functions are {', '.join(there_are)}")
        if node.func.id == "number":
            written = self._wanted(node.args[0], "text").evaluate
            return _Part("number", lambda values: _numbers(written(values)))
        text, part = self._wanted(node.args[0], "text").evaluate, node.args[1]
        if not isinstance(part, ast.Constant) or not isinstance(part.value, str):
            raise ExpressionError(f"{ast.unparse(node)!r}: the part looked for is a text in quotes")
        wanted = part.value.casefold()
        return _Part("flag", lambda values: _each(text(values), lambda value: wanted in value.casefold()))

    def _looked_up(self, node: ast.Call, name: str) -> _Part:
        """A number of a table: a field's name and a literal between 0 and 1."""
        field, share = node.args if len(node.args) == 2 and not node.keywords else (None, None)
        if not isinstance(field, ast.Name) or self.fields.get(field.id) != "number":
            raise ExpressionError(f"{ast.unparse(node)!r}: write {name}(field, share) with a field that is a number")
        value = share.value if isinstance(share, ast.Constant) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ExpressionError(f"{ast.unparse(node)!r}: the share is a number between 0 and 1, for example 0.8")
        number = self.tables[name](field.id, float(value))
        return _Part("number", lambda values: number, lambda lows, highs: (number, number))


def _span(part: _Part, lows: Values, highs: Values) -> Span:
    """What a part can be while its fields move."""
    assert part.bounds is not None
    return part.bounds(lows, highs)


def _among(found: Span, wanted: set[Any], inside: bool) -> Span:
    return ((found[0] in wanted) == inside,) * 2 if found[0] == found[1] else ANY_FLAG


def _numbers(values: Any) -> Any:
    """Of texts; what is none is no number, which compares as False."""
    def read(text: str) -> float:
        found = events.number(text)
        return np.nan if found is None else found

    if not isinstance(values, np.ndarray):
        return read(values)
    return np.fromiter(map(read, values.tolist()), dtype=np.float64, count=len(values))


def _each(values: Any, test: Callable[[Any], bool]) -> Any:
    if not isinstance(values, np.ndarray):
        return test(values)
    return np.fromiter(map(test, values.tolist()), dtype=bool, count=len(values))
