"""Who asks too fast, or sends bodies that do not end, is told so; who has another key is answered meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest

from stream.http.rates import Buckets
from stream.http.slots import Shares
from stream.settings import Api as ApiSettings
from tests.support.read_api import KEY, KEY_OF_TWO, Shop


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    shop = Shop(tmp_path)
    shop.api._read_keys = Buckets(per_s=0.1, burst=4, units="answers")
    return shop


async def test_a_read_key_that_asks_too_fast_is_told_when_to_come_back_and_others_are_answered(shop: Shop) -> None:
    for _ in range(4):
        assert (await shop.get("/v1/users/u1")).status_code == 200
    refused = await shop.get("/v1/recommendations/u1")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "10")
    assert refused.json()["error"]["code"] == "too_many_answers"
    assert refused.json()["error"]["message"].startswith("A read key of t asks for more than 0.1 answers/s")
    assert (await shop.ask("GET", "/v1/items/i1/neighbors", auth=KEY_OF_TWO)).status_code != 429
    assert (await shop.get("/health/live")).status_code == 200
    assert 'clickwake_api_limited_total{code="too_many_answers"} 1.0' in (await shop.get("/metrics")).text


async def test_a_batch_read_counts_as_many_answers_as_it_names_users(shop: Shop) -> None:
    asked = {"users": ["u1", "u1", "u1"]}
    assert (await shop.post("/v1/recommendations", asked)).status_code == 200
    assert (await shop.post("/v1/recommendations", asked)).status_code == 429


async def test_a_batch_read_of_too_many_is_told_so_and_not_to_come_back(shop: Shop) -> None:
    refused = await shop.post("/v1/recommendations", {"users": [f"u{n}" for n in range(1_500)]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "too_many_users")


def test_the_largest_batch_read_fits_at_first(tmp_path: Path) -> None:
    buckets = Shop(tmp_path, limits=ApiSettings(key_answers_per_s_max=1.0, users_max=50)).api._read_keys
    assert buckets.wait_s("k", 50, 0.0) == 0.0 < buckets.wait_s("k", 51, 0.0)


async def test_slow_bodies_of_one_read_key_leave_room_for_the_others(shop: Shop) -> None:
    shop.api._unfinished = Shares(1, "unfinished requests of this key")
    text, begun, go_on = msgspec.json.encode({"user_id": "u1", "items": ["i1"]}), asyncio.Event(), asyncio.Event()

    async def dripping() -> AsyncIterator[bytes]:
        yield text[:1]
        begun.set()
        await go_on.wait()
        yield text[1:]

    async with httpx.AsyncClient(transport=httpx.ASGITransport(shop.app), base_url="http://api") as http:
        slow = asyncio.create_task(http.post("/v1/rank", content=dripping(), auth=KEY))
        await begun.wait()
        refused = await http.post("/v1/rank", content=text, auth=KEY)
        assert refused.status_code == 429 and "unfinished requests of this key" in refused.text
        assert (await http.post("/v1/rank", content=text, auth=KEY_OF_TWO)).status_code != 429
        go_on.set()
        assert (await slow).status_code == 200
