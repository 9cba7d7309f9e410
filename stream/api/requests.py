"""What may be asked of the read API, checked: a request that cannot be understood is told which part of it, and why."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from starlette.datastructures import QueryParams

from schemas.events import Id
from stream.core.decode import message_of
from stream.core.expressions import expression
from stream.core.expressions.expression import Expression, ExpressionError
from stream.core.ranking.index import FIELDS
from stream.core.ranking.recommend import REASONS_MAX
from stream.core.ranking.scenarios import Scenario
from stream.http.answers import Refused, invalid

T = TypeVar("T", bound=msgspec.Struct)
GIVEN_MAX = 50  # items that may be given to a scenario
REASONS_LISTED_MAX = 100  # more than a state remembers

Field = Literal["title", "brand", "category", "description", "price", "url", "image_url", "in_stock"]


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What to recommend, beyond to whom.

    `items`: what a scenario is about (similar: these; complements: goes with these, default the user's cart). `filter` and
    `boost` are expressions over items: a condition, and a factor of the score. `explore`: the share of places that go to
    items nobody knows yet. `fields`: what of the catalog comes along. `log`: whether the answer is shown to the user, and
    counts as a decision.
    """

    scenario: Scenario = "for_you"
    n: Annotated[int, msgspec.Meta(ge=1)] = 10
    items: Annotated[tuple[Id, ...], msgspec.Meta(max_length=GIVEN_MAX)] = ()
    filter: str | None = None
    boost: str | None = None
    exclude: Literal["none", "bought", "seen"] | None = None
    category_cap: Annotated[int, msgspec.Meta(ge=1)] | None = None
    diversity: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    explore: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    fields: tuple[Field, ...] = ()
    log: bool = True

    def as_asked(self) -> dict[str, str]:
        """What differs from the defaults, for the log of decisions."""
        told = msgspec.to_builtins(self)
        return {
            name: value if isinstance(value, str) else msgspec.json.encode(value).decode() for name, value in told.items()
            if name in _DEFAULTS and value != _DEFAULTS[name] and name not in ("scenario", "fields", "log")
        }  # fmt: skip


_DEFAULTS = msgspec.to_builtins(Ask())


class AskWhy(Ask, frozen=True, kw_only=True):
    """A recommendation's request, and how many reasons to name: those with the largest shares of the score."""

    reasons: Annotated[int, msgspec.Meta(ge=1, le=REASONS_LISTED_MAX)] = REASONS_MAX


class AskForMany(Ask, frozen=True, kw_only=True):
    """The same for several users at once."""

    users: Annotated[tuple[Id, ...], msgspec.Meta(min_length=1)]


class ToRank(msgspec.Struct, frozen=True, kw_only=True):
    """Given items in the user's order; rules do not apply, the boost does."""

    user_id: Id
    items: Annotated[tuple[Id, ...], msgspec.Meta(min_length=1, max_length=1_000)]
    boost: str | None = None
    log: bool = True


class Neighbors(msgspec.Struct, frozen=True, kw_only=True):
    """How many items like a given one, and which."""

    n: Annotated[int, msgspec.Meta(ge=1)] = 10
    filter: str | None = None
    fields: tuple[Field, ...] = ()


class Nothing(msgspec.Struct, frozen=True):
    """Where no parameter may be given."""


def from_query(query: QueryParams, kind: type[T]) -> T:
    """Parameters of a URL; lists are separated by commas, or given one by one, so that an id may have a comma. Raises
    Refused 400."""
    given: dict[str, Any] = dict(query)
    _known(given, kind, "parameter")
    for name in ("items", "fields", "offers"):
        if name in given:
            several = query.getlist(name)
            given[name] = [one for one in (several if len(several) > 1 else several[0].split(",")) if one]
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _complaint(error) from error


def from_body(raw: bytes, kind: type[T]) -> T:
    """A JSON body. Raises Refused 400."""
    try:
        _known(msgspec.json.decode(raw, type=dict[str, msgspec.Raw]), kind, "field")
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise _complaint(error) from error


def _known(given: Mapping[str, object], kind: type[msgspec.Struct], what: str) -> None:
    """A word that is not understood must not pass: who misspells `filter` would be shown what they left out."""
    unknown = sorted(given.keys() - set(kind.__struct_fields__))
    if unknown:
        there_are = ", ".join(sorted(kind.__struct_fields__)) or "none"
        raise invalid(unknown[0], "unknown", f"There is no {what} {unknown[0]!r}; there are {there_are}.")


def _complaint(error: Exception) -> Refused:
    if isinstance(error, msgspec.ValidationError):
        message = message_of(error)
        return invalid(message.path, message.keyword, f"The request cannot be understood: {message.message}.")
    return invalid("", "json", f"The body is no JSON: {error}.")


def condition(text: str | None) -> Expression | None:
    """The filter. Raises Refused 400."""
    return None if text is None else _parsed("filter", text)


def factor(text: str | None) -> Expression | None:
    """The boost. Raises Refused 400."""
    return None if text is None else _parsed("boost", text)


@lru_cache(maxsize=1_000)
def _parsed(what: Literal["filter", "boost"], text: str) -> Expression:
    try:
        return expression.parse(text, FIELDS, "flag" if what == "filter" else "number")
    except ExpressionError as error:
        raise invalid(what, "expression", f"{error}.") from error
