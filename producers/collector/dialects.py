"""Where other systems' events arrive, how each is read, and what their clients want to hear."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from schemas.dialects import DialectError, Translate, from_base64, ga4, metarank, posthog, snowplow
from stream.http import body
from stream.http.answers import Json

WHAT = "The request"
FORM = "application/x-www-form-urlencoded"
PARAMETERS_MAX = 200  # Snowplow's protocol has some 150
GZIP_MAGIC = b"\x1f\x8b"
GZIP_NAMES = ("gzip", "gzip-js")
PIXEL = (b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\x00\x00\x00!\xf9\x04\x01\x00\x00\x00\x00,"
         b"\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;")  # fmt: skip  # one transparent point

Read = Callable[[Request, int], Awaitable[Any]]


async def _json(request: Request, limit: int) -> Any:
    return msgspec.json.decode(await body.read(request, limit, WHAT))


async def _in_the_address(request: Request, limit: int) -> Any:
    """Snowplow's GET form: one event, a parameter a field."""
    return {"data": [_parameters(body.query(request))]}


async def _posthog(request: Request, limit: int) -> Any:
    """JSON; the same in gzip, which `compression` says rather than a header; or `data=` with either in base64, in the
    address of a GET or in a form."""
    if request.method == "GET":
        return _unpacked(_data(body.query(request)), limit)
    gzipped = request.query_params.get("compression") in GZIP_NAMES
    raw = await body.read(request, limit, WHAT, gzipped=gzipped, media_types=(*body.MEDIA_TYPES, FORM))
    return _unpacked(_data(raw.decode()), limit) if raw.startswith(b"data=") else msgspec.json.decode(raw)


def _data(parameters: str) -> str:
    found = _parameters(parameters).get("data")
    if found is None:
        raise DialectError("data", "wanted is data=, an event as JSON in base64")
    return found


def _parameters(text: str) -> dict[str, str]:
    """The last of each name counts."""
    try:
        return {name: values[-1] for name, values in parse_qs(text, max_num_fields=PARAMETERS_MAX).items()}
    except ValueError as error:
        raise DialectError("", f"more than {PARAMETERS_MAX} parameters") from error


def _unpacked(text: str, limit: int) -> Any:
    if text.lstrip().startswith(("{", "[")):
        return msgspec.json.decode(text)
    try:
        raw = from_base64(text)
    except ValueError as error:
        raise DialectError("data", f"no base64: {error}") from error
    return msgspec.json.decode(body.inflated(raw, limit, WHAT) if raw.startswith(GZIP_MAGIC) else raw)


class Dialect(NamedTuple):
    """A way in: how a request becomes JSON within a limit of bytes, how that is understood, and what is answered once Kafka
    has acknowledged so many events. `read` raises what decoding raises, DialectError and Refused."""

    name: str
    translate: Translate
    accepted: Callable[[int], Response]
    read: Read = _json
    methods: tuple[str, ...] = ("POST",)


def _pixel(count: int) -> Response:
    return Response(PIXEL, media_type="image/gif", headers={"Cache-Control": "no-store"})


_GA4 = Dialect("ga4", ga4.translate, lambda count: Response(status_code=204))
_SNOWPLOW = Dialect("snowplow", snowplow.translate, lambda count: PlainTextResponse("ok"))
_SNOWPLOW_PIXEL = Dialect("snowplow_pixel", snowplow.translate, _pixel, _in_the_address, ("GET",))
_POSTHOG = Dialect("posthog", posthog.translate, lambda count: Json({"status": 1}), _posthog, ("POST", "GET"))
_METARANK = Dialect(
    "metarank", metarank.translate, lambda count: Json({"status": "ok", "accepted": count, "tookMillis": 0, "updated": 0})
)
DIALECTS: Mapping[str, Dialect] = {
    "/mp/collect": _GA4, "/com.snowplowanalytics.snowplow/tp2": _SNOWPLOW, "/i": _SNOWPLOW_PIXEL, "/feedback": _METARANK,
    **{path: _POSTHOG for one in ("/capture", "/e", "/i/v0/e", "/batch") for path in (one, f"{one}/")},
}  # fmt: skip
