"""Events as ClickHouse keeps them, back to what they were: what a replay of history needs of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from schemas.events import Event, EventTexts

COLUMNS = "message_id, lane, type, event, timestamp, user_id, anonymous_id, properties, context"


def event(tenant: str, row: tuple[Any, ...]) -> Event:
    """From a row of COLUMNS. The id before an alias is not stored."""
    message_id, lane, kind, name, timestamp, user_id, anonymous_id, properties, context = row
    return msgspec.convert(
        {
            "messageId": message_id, "type": kind, "event": name or None, "lane": lane, "tenant": tenant,
            "timestamp": timestamp, "userId": user_id or None, "anonymousId": anonymous_id or None,
            "properties": msgspec.json.decode(properties or "{}"), "context": msgspec.json.decode(context or "{}"),
        },
        Event,
    )  # fmt: skip


def texts(row: Sequence[Any]) -> EventTexts:
    """The free-form parts, from a row of COLUMNS and `traits`."""
    properties, context, traits = (msgspec.Raw((text or "{}").encode()) for text in row[-3:])
    return EventTexts(properties=properties, traits=traits, context=context)
