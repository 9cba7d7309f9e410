"""Metrics are read on the machine itself, with the key, or by whoever reaches them where the settings say so by name."""

from __future__ import annotations

import base64
import http.client
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from pydantic import SecretStr

from producers.collector.app import create_app
from stream.adapters.health import metrics_port
from stream.http import scraping
from stream.http.keys import hashed
from stream.settings import Api, Collector, Metrics, Settings
from tests.support.read_api import Shop

KEY, BEYOND = "of prometheus", "0.0.0.0"  # noqa: S104 - what is asked about


class Asked(NamedTuple):
    peer: str
    key: str = ""
    forwarded: str = ""

    @property
    def headers(self) -> dict[str, str]:
        said = {"Authorization": f"Basic {base64.b64encode(f'{self.key}:'.encode()).decode()}"} if self.key else {}
        return said | ({"X-Forwarded-For": self.forwarded} if self.forwarded else {})


CASES: dict[str, tuple[Metrics, Asked, int]] = {
    "on the machine": (Metrics(key=SecretStr(KEY)), Asked("127.0.0.1"), 200),
    "through a proxy on the machine": (Metrics(without_key=True), Asked("127.0.0.1", forwarded="203.0.113.5"), 401),
    "from elsewhere, nothing said": (Metrics(), Asked("127.0.0.2"), 401),
    "from elsewhere without the key": (Metrics(key=SecretStr(hashed(KEY))), Asked("127.0.0.2"), 401),
    "from elsewhere with another": (Metrics(key=SecretStr(hashed(KEY))), Asked("127.0.0.2", "guessed"), 401),
    "from elsewhere with the key": (Metrics(key=SecretStr(hashed(KEY))), Asked("127.0.0.2", KEY), 200),
    "through a proxy with the key": (Metrics(key=SecretStr(hashed(KEY))), Asked("127.0.0.2", KEY, "203.0.113.5"), 200),
    "from elsewhere in a private network": (Metrics(without_key=True), Asked("127.0.0.2"), 200),
    "into a private network through a proxy": (Metrics(without_key=True), Asked("127.0.0.2", forwarded="203.0.113.5"), 401),
}  # fmt: skip


BEHIND_TLS: dict[str, tuple[Metrics, Asked, int]] = {  # a proxy that says nothing looks like somebody on the machine
    "on the machine": (Metrics(), Asked("127.0.0.1"), 401),
    "on the machine, in a private network": (Metrics(without_key=True), Asked("127.0.0.1"), 401),
    "on the machine with the key": (Metrics(key=SecretStr(hashed(KEY))), Asked("127.0.0.1", KEY), 200),
    "from elsewhere in a private network": (Metrics(without_key=True), Asked("127.0.0.2"), 200),
}  # fmt: skip


@pytest.mark.parametrize(("case", "behind_tls"), [
    *(pytest.param(one, False, id=name) for name, one in CASES.items()),
    *(pytest.param(one, True, id=f"{name}, behind TLS") for name, one in BEHIND_TLS.items()),
])  # fmt: skip
async def test_of_the_collector_and_the_read_api(
    case: tuple[Metrics, Asked, int], behind_tls: bool, tmp_path: Path
) -> None:
    own, asked, status = case
    shop = Shop(tmp_path, limits=Api(behind_tls=behind_tls)).app
    shop.state.api._scraped = own
    settings = Settings(home=tmp_path, metrics=own, collector=Collector(behind_tls=behind_tls))
    for app in (create_app(settings), shop):
        transport = httpx.ASGITransport(app, client=(asked.peer, 40_000))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            answer = await client.get("/metrics", headers=asked.headers)
        assert answer.status_code == status and ("clickwake_" in answer.text) == (status == 200)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_of_a_worker(case: tuple[Metrics, Asked, int], tmp_path: Path) -> None:
    own, asked, status = case
    server = metrics_port.listen(Settings(home=tmp_path, metrics=own), 0)
    try:
        client = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=5, source_address=(asked.peer, 0))
        client.request("GET", "/metrics", headers=asked.headers)
        answer = client.getresponse()
        assert answer.status == status and (b"python_info" in answer.read()) == (status == 200)
        assert (answer.headers["WWW-Authenticate"] is None) == (status == 200)
        client.close()
    finally:
        server.shutdown()
        server.server_close()


def test_beyond_loopback_nothing_says_its_metrics_before_it_was_told_to_whom() -> None:
    for own in (Metrics(key=SecretStr(hashed(KEY))), Metrics(without_key=True)):
        assert scraping.refusal(BEYOND, own) is None
    assert scraping.refusal("127.0.0.1", Metrics()) is scraping.refusal("127.0.0.1", Metrics(key=SecretStr(KEY))) is None
    assert "in the clear: put its hash there" in (scraping.refusal(BEYOND, Metrics(key=SecretStr(KEY))) or "")
    assert "CLICKWAKE_METRICS__WITHOUT_KEY=true" in (scraping.refusal(BEYOND, Metrics()) or "")
