"""What people think of items and brands, as it is read in the stream, and the alert when it falls."""

from __future__ import annotations

from typing import Literal

import msgspec

from schemas.events import Instant

Source = Literal["review", "survey", "mention", "ticket"]
About = Literal["item", "brand"]
Reason = Literal["opinions", "tickets"]


class Aspect(msgspec.Struct, frozen=True, kw_only=True):
    """One sentence about one side of the thing, with the words by which it was told. `p_satisfied` is of that sentence;
    null without a model of the language."""

    aspect: str
    words: tuple[str, ...]
    sentence: str
    p_satisfied: float | None = None


class Opinion(msgspec.Struct, frozen=True, kw_only=True):
    """One text or rating of one person, on `clickwake.opinions.v1`; the whole text stays with the event.

    `satisfaction`, 0 to 1, is what counts: of the stars that were given, else of those read from the text, else
    `p_satisfied`, the chance that the writer recommends it by the text alone; null when nothing tells. `language` is ISO
    639-1, `und` when nobody can say. `telling`: the sentence that says most.
    """

    opinion_id: str
    tenant: str
    user_id: str
    event_id: str
    source: Source
    lane: str
    said_at: Instant
    item_id: str
    brand: str
    language: str
    satisfaction: float | None
    stars: float | None
    stars_read: float | None
    p_satisfied: float | None
    aspects: tuple[Aspect, ...]
    telling: str
    model_version: str


class Quote(msgspec.Struct, frozen=True, kw_only=True):
    """A sentence that speaks for an alert. Who said it is only in the opinion. `satisfaction`: of that opinion; null for a
    ticket that no model has read."""

    opinion_id: str
    sentence: str
    satisfaction: float | None
    said_at: Instant


class SatisfactionAlert(msgspec.Struct, frozen=True, kw_only=True):
    """Satisfaction with an item or a brand fell (`raised`) or rose again (`cleared`), on `clickwake.satisfaction-alerts.v1`.
    By `reason`: opinions got worse, or there are more support tickets than usual.

    `changed_at`: when the first opinion after the change was said, or the beginning of the day (UTC) since when there are
    more tickets. `before` and `after`: mean satisfaction, 0 to 1, of so many opinions; or tickets a day, and how many there
    were. `number` counts the changes of this item or brand, and the id stands for it, so that a replay says the same.
    `opinions_per_false_alarm`: how many opinions, or tickets, there are on average, at least, until a false alarm about
    something that is stable.
    """

    alert_id: str
    tenant: str
    about: About
    name: str
    state: Literal["raised", "cleared"]
    number: int
    changed_at: Instant
    as_of_ts: Instant
    before: float
    after: float
    opinions_before: int
    opinions_after: int
    evidence: tuple[Quote, ...]
    opinions_per_false_alarm: int
    reason: Reason = "opinions"
