"""Which pages' browsers may talk to the collector and to the read API: exact origins, and none to read by default."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from producers.collector.app import create_app as create_collector
from stream.api.app import create_app as create_read_api
from stream.settings import Api, Collector, Settings

SHOP = "https://shop.example"
STRANGERS = ["https://evil.example", "https://shop.example.evil.example", "https://sub.shop.example", "http://shop.example",
             "https://shop.example:8443", "null"]  # fmt: skip


def allowed(app: Starlette, path: str, origin: str) -> list[str | None]:
    """What a preflight and a request from a page are told about its origin."""

    async def ask() -> list[str | None]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as http:
            asked = {"Origin": origin, "Access-Control-Request-Method": "POST",
                     "Access-Control-Request-Headers": "authorization, content-type"}  # fmt: skip
            answers = [await http.options(path, headers=asked), await http.post(path, headers={"Origin": origin})]
            return [one.headers.get("access-control-allow-origin") for one in answers]

    return asyncio.run(ask())


@pytest.mark.parametrize("origin", STRANGERS)
def test_the_collector_answers_the_pages_that_are_named_and_no_others(origin: str) -> None:
    app = create_collector(Settings(collector=Collector(cors_origins=(SHOP,))))
    assert allowed(app, "/v1/track", SHOP) == [SHOP, SHOP]
    assert allowed(app, "/v1/track", origin) == [None, None]


@pytest.mark.parametrize("path", ["/v1/track", "/v1/b", "/mp/collect", "/capture", "/e/", "/v1/track/"])
def test_out_of_the_box_a_page_on_another_port_may_send(path: str) -> None:
    assert allowed(create_collector(Settings()), path, "http://localhost:5173") == ["*", "*"]


@pytest.mark.parametrize("origins", [("*",), (SHOP,)])
@pytest.mark.parametrize("path", ["/com.snowplowanalytics.snowplow/tp2", "/i"])
def test_a_browser_may_send_cookies_to_where_snowplows_tracker_has_it_do_so(path: str, origins: tuple[str, ...]) -> None:
    app = create_collector(Settings(collector=Collector(cors_origins=origins)))

    async def preflight(asked: str) -> httpx.Headers:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as http:
            return (await http.options(asked, headers={"Origin": SHOP, "Access-Control-Request-Method": "POST"})).headers

    told = asyncio.run(preflight(path))
    assert (told["access-control-allow-origin"], told["access-control-allow-credentials"]) == (SHOP, "true")
    assert allowed(app, path, SHOP) == [SHOP, SHOP], "the origin itself, never *"
    assert "access-control-allow-credentials" not in asyncio.run(preflight("/v1/track"))


@pytest.mark.parametrize("path", ["/v1/regulations", "/v1/regulations/r1", "/metrics", "/health/live", "/openapi.json"])
@pytest.mark.parametrize("origins", [None, ("*",), (SHOP,)])
def test_nothing_but_what_takes_events_answers_other_pages(path: str, origins: tuple[str, ...] | None) -> None:
    assert allowed(create_collector(Settings(collector=Collector(cors_origins=origins))), path, SHOP) == [None, None]


@pytest.mark.parametrize("origin", [SHOP, *STRANGERS])
def test_no_page_may_read_unless_it_is_named(origin: str, tmp_path: Path) -> None:
    closed = create_read_api(Settings(home=tmp_path))
    assert allowed(closed, "/v1/recommendations", origin) == [None, None]
    opened = create_read_api(Settings(home=tmp_path, api=Api(cors_origins=(SHOP,))))
    assert allowed(opened, "/v1/recommendations", origin) == ([SHOP, SHOP] if origin == SHOP else [None, None])
