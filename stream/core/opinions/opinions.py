"""Which events say what people think: names and properties, and what is taken from each.

| event | text | stars | source |
| --- | --- | --- | --- |
| Product Reviewed | review_title, review_body | rating, 1 to rating_max (5) | review |
| Survey Answered | answer, comment | score, 0 to score_max (10) | survey |
| Brand Mentioned | text | – | mention |
| Support Ticket Created | subject, description, message | – | ticket |

Each may carry product_id and brand. Tickets are complaints by their nature: they are read and are in no mean, how
many there are is what tells (`stream.core.opinions.complaints`).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from schemas.events import PRODUCT_REVIEWED, number
from schemas.opinions import Source
from schemas.unreadable import UNREADABLE

TEXT_CHARS_MAX = 4_000  # of one opinion; the longest clothing review has 510
BRAND_CHARS_MAX = 256
STARS_MAX = 5.0
COUNTED: frozenset[Source] = frozenset({"review", "survey", "mention"})


class Form(NamedTuple):
    source: Source
    texts: tuple[str, ...]
    rating: str | None = None
    lowest: float = 0.0
    highest: float = 0.0  # where the event does not say: the property's name with _max


FORMS = MappingProxyType({
    PRODUCT_REVIEWED: Form("review", ("review_title", "review_body"), "rating", 1.0, 5.0),
    "Survey Answered": Form("survey", ("answer", "comment"), "score", 0.0, 10.0),
    "Brand Mentioned": Form("mention", ("text",)),
    "Support Ticket Created": Form("ticket", ("subject", "description", "message")),
})  # fmt: skip


class Said(NamedTuple):
    """What an event says, before it is read. `stars`: 1 to 5."""

    source: Source
    text: str
    stars: float | None
    item_id: str
    brand: str


def said(name: str | None, properties: bytes) -> Said | None:
    """What an event's name and properties (JSON) say; None when it is no opinion, or one without words and stars. Total:
    what is not of its type counts as not there.

    >>> said("Survey Answered", b'{"score": 10, "comment": "Quick!", "product_id": "mug"}')
    Said(source='survey', text='Quick!', stars=5.0, item_id='mug', brand='')
    >>> said("Product Reviewed", b'{"rating": "4", "product_id": "mug"}').stars
    4.0
    >>> said("Product Viewed", b"{}") is said("Product Reviewed", b'{"rating": "many"}') is None
    True
    >>> said("Survey Answered", b'{"score": 1' + b"0" * 400 + b"}") is None  # no number that counts
    True
    """
    form = FORMS.get(name or "")
    if form is None:
        return None
    try:
        found = msgspec.json.decode(properties)
    except UNREADABLE:
        return None
    if not isinstance(found, dict):
        return None
    parts = [_text(found, one) for one in form.texts]
    text = "\n".join(one for one in parts if one)[:TEXT_CHARS_MAX]
    stars = None if form.rating is None else _stars(found, form.rating, form.lowest, form.highest)
    if not text and stars is None:
        return None
    return Said(form.source, text, stars, _text(found, "product_id"), _text(found, "brand")[:BRAND_CHARS_MAX])


def _text(found: dict[str, Any], name: str) -> str:
    value = found.get(name)
    return value.strip() if isinstance(value, str) else ""


def _stars(found: dict[str, Any], name: str, lowest: float, highest: float) -> float | None:
    """On the scale of 1 to 5; None outside the event's own scale."""
    value, most = number(found.get(name)), number(found.get(f"{name}_max")) or highest
    if value is None or not lowest <= value <= most or most <= lowest:
        return None
    return 1.0 + (STARS_MAX - 1.0) * ((value - lowest) / (most - lowest))


def satisfaction(stars: float | None, stars_read: float | None, p_satisfied: float | None) -> float | None:
    """What counts, 0 to 1: stars that were given, else those read, else the chance of a recommendation.

    >>> satisfaction(4.0, 1.2, 0.1), satisfaction(None, 3.0, 0.1), satisfaction(None, None, 0.1)
    (0.75, 0.5, 0.1)
    """
    known = stars if stars is not None else stars_read
    return p_satisfied if known is None else (known - 1.0) / (STARS_MAX - 1.0)
