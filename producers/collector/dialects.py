"""Where other systems' events arrive, and what their clients want to hear."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from starlette.responses import PlainTextResponse, Response

from schemas.dialects import Translate, ga4, metarank, posthog, snowplow
from stream.http.answers import Json


class Dialect(NamedTuple):
    """A way in: how a body is read, and what is answered once Kafka has acknowledged so many events."""

    name: str
    translate: Translate
    accepted: Callable[[int], Response]


_GA4 = Dialect("ga4", ga4.translate, lambda count: Response(status_code=204))
_SNOWPLOW = Dialect("snowplow", snowplow.translate, lambda count: PlainTextResponse("ok"))
_POSTHOG = Dialect("posthog", posthog.translate, lambda count: Json({"status": 1}))
_METARANK = Dialect(
    "metarank", metarank.translate, lambda count: Json({"status": "ok", "accepted": count, "tookMillis": 0, "updated": 0})
)
DIALECTS: Mapping[str, Dialect] = {
    "/mp/collect": _GA4, "/com.snowplowanalytics.snowplow/tp2": _SNOWPLOW, "/feedback": _METARANK,
    **{path: _POSTHOG for one in ("/capture", "/e", "/i/v0/e", "/batch") for path in (one, f"{one}/")},
}  # fmt: skip
