"""PostHog's capture API, `/capture`, `/e`, `/i/v0/e` and `/batch`; `api_key` or `token` is the write key.

Its e-commerce events have Segment's names (posthog.com/docs/data/event-spec/ecommerce-events). A distinct id is a user's
unless the event says that it is nobody's yet (`$process_person_profile` or `$is_identified` false). An alias is another id
of the distinct id's user, as its libraries have it. posthog.com/docs/api/capture.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from schemas.dialects import Translated, derived_id, instant, list_of, object_of, present

_OF_THE_PROTOCOL = ("token", "api_key", "distinct_id", "$set", "$set_once", "$anon_distinct_id", "$ip")


def translate(body: Any, query: Mapping[str, str]) -> Translated:
    """One request: an event, a list of them, or a batch. Raises DialectError."""
    if isinstance(body, list):
        given, outer = list_of(body, ""), {}
    else:
        outer = object_of(body, "")
        given = list_of(outer["batch"], "batch") if "batch" in outer else [outer]
    found, key = [], outer.get("api_key") or outer.get("token")
    for at, one in enumerate(given):
        properties = object_of(one.get("properties") or {}, f"batch[{at}].properties")
        key = key or one.get("api_key") or properties.get("token")
        found.append(_event(one, properties, at))
    sent_at = _utc(outer.get("sent_at")) or instant(query.get("_"), 1_000)
    return Translated(found, key if isinstance(key, str) else None, sent_at)


def _event(one: dict[str, Any], properties: dict[str, Any], at: int) -> dict[str, Any]:
    name, ident = one.get("event"), one.get("distinct_id") or properties.get("distinct_id")
    nobody = properties.get("$process_person_profile") is False or properties.get("$is_identified") is False
    about = present(
        messageId=one.get("uuid") or properties.get("$insert_id") or derived_id(one, at, at=one.get("timestamp")),
        originalTimestamp=_utc(one.get("timestamp")),
        userId=None if nobody else ident, anonymousId=ident if nobody else None,
        traits=_set(properties, one, "$set_once") | _set(properties, one, "$set"),
        context=present(sessionId=properties.get("$session_id"), ip=properties.get("$ip"), page=present(
            url=properties.get("$current_url"), path=properties.get("$pathname"), referrer=properties.get("$referrer"))),
    )  # fmt: skip
    own = {key: value for key, value in properties.items() if key not in _OF_THE_PROTOCOL}
    if isinstance(own.get("query"), dict):  # of a search: text or an object
        own["query"] = msgspec.json.encode(own["query"]).decode()
    if name == "$identify":
        return about | present(type="identify", userId=ident, anonymousId=properties.get("$anon_distinct_id"))
    if name == "$create_alias":
        return about | present(type="alias", userId=ident, previousId=properties.get("alias"))
    if name == "$groupidentify":
        return about | present(type="group", groupId=properties.get("$group_key"), traits=properties.get("$group_set"))
    if name in ("$pageview", "$screen"):
        return about | {"type": "page" if name == "$pageview" else "screen", "name": properties.get("$screen_name") or "",
                        "properties": own | present(url=properties.get("$current_url"))}  # fmt: skip
    return about | {"type": "track", "event": name, "properties": own}


def _set(properties: dict[str, Any], one: dict[str, Any], name: str) -> dict[str, Any]:
    """What an event says of its person, in its properties or beside them."""
    found = properties.get(name) or one.get(name)
    return found if isinstance(found, dict) else {}


def _utc(time: Any) -> Any:
    """A time without a zone is UTC's; what is no time is left for whoever checks it.

    >>> _utc("2020-08-16T09:03:11.913767"), _utc("2020-08-16T09:03:11Z"), _utc("soon")
    ('2020-08-16T09:03:11.913767+00:00', '2020-08-16T09:03:11Z', 'soon')
    """
    try:
        found = datetime.fromisoformat(time)
    except (TypeError, ValueError):
        return time
    return time if found.tzinfo else found.replace(tzinfo=UTC).isoformat()
