"""Requests of the demo shop and the dashboard in figures: by route, never by path."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from clickwake.storefront.app import create_app
from stream.http.measured import Measured
from stream.settings import Api, Collector, Settings
from stream.settings import Shop as ShopSettings
from tests.support.read_api import KEY, Shop, served


async def test_each_request_is_counted_by_its_route_and_status_and_takes_its_time() -> None:
    registry = CollectorRegistry()
    requests = Counter("requests", "…", ["endpoint", "status"], registry=registry)
    seconds = Histogram("seconds", "…", ["endpoint"], registry=registry)

    async def user(request: Request) -> Response:
        if request.path_params["user"] == "nobody":
            raise RuntimeError("what nobody thought of")
        return PlainTextResponse("ok", 201)

    app = Starlette(routes=[Route("/users/{user}", user)],
                    middleware=[Middleware(Measured, requests=requests, seconds=seconds)])  # fmt: skip
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
        for path in ("/users/alice", "/users/bob", "/alice"):
            await client.get(path)
        await client.post("/users/alice")
        with pytest.raises(RuntimeError):
            await client.get("/users/nobody")
    counted = {(one.labels["endpoint"], one.labels["status"]): one.value for metric in registry.collect()
               for one in metric.samples if one.name == "requests_total"}  # fmt: skip
    assert counted == {("/users/{user}", "201"): 2, ("/users/{user}", "405"): 1, ("/users/{user}", "500"): 1,
                       ("other", "404"): 1}  # fmt: skip
    assert registry.get_sample_value("seconds_count", {"endpoint": "/users/{user}"}) == 4


async def test_the_shop_asks_by_the_id_that_its_page_asks_by(tmp_path: Path) -> None:
    shop, ident = Shop(tmp_path), "12/A%?"
    shop.also_known_as(ident)
    async with served(shop.app) as port:
        app = create_app(Settings(
            home=tmp_path, shop=ShopSettings(tenant="t"), api=Api(port=port, read_keys={"t": SecretStr(KEY[0])}),
            collector=Collector(write_keys={"t": SecretStr("write")})))  # fmt: skip
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop")
        async with app.router.lifespan_context(app), client:
            answer = await client.get(f"/api/v1/why/{quote(ident, safe='')}/{quote(ident, safe='')}", params={"n": 5})
    assert (answer.status_code, answer.json()["user_id"], answer.json()["item_id"]) == (200, ident, ident)


async def test_the_shop_says_what_was_asked_of_it(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, api=Api(port=1, read_keys={"demo": SecretStr("read")}),
                        collector=Collector(write_keys={"demo": SecretStr("write")}))  # fmt: skip
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(settings)), base_url="http://shop") as client:
        for path in ("/", "/static/shop.css", "/api/v1/users/alice"):
            await client.get(path)
        said = (await client.get("/metrics")).text
    for endpoint, status in (("/", 200), ("/static", 200), ("/api/v1/users/{user}", 503)):  # nobody listens at port 1
        assert f'clickwake_shop_requests_total{{endpoint="{endpoint}",status="{status}"}} 1.0' in said
        assert f'clickwake_shop_request_seconds_count{{endpoint="{endpoint}"}} 1.0' in said
    assert "alice" not in said
