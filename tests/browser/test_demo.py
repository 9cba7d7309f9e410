"""The pages of a demo that stays up, as `make demo KEEP=1` wires them: a click in its shop changes what that recommends, and
says why; the dashboard's live page counts it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import msgspec
import pytest
from playwright.sync_api import Browser, Page, expect

from clickwake.local.up import read_status
from producers.client import Client
from schemas import topics
from stream.settings import Kafka, Settings
from tests.browser.test_shop import ITEMS, STOPWATCH, soon_enough
from tests.support import surfaces
from tests.support.cluster import Sender, until
from tests.support.demo import ENDED_S, STARTED_S, Demo, staying

TENANT, KEY = "demo", "demo-write-key"


@pytest.fixture(scope="module")
def demo(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """With a catalog, of which people look at one thing after the other in its order."""
    home = tmp_path_factory.mktemp("demo")
    with staying(home) as demo:
        status = read_status(home)
        assert status is not None
        settings = Settings(home=home, kafka=Kafka.model_validate({"bootstrap_servers": status.kafka}))
        with Sender(settings, topics.ITEMS) as items:
            sold = (msgspec.structs.replace(one, tenant=TENANT) for one in ITEMS)
            items.send([(f"{TENANT}/{one.item_id}".encode(), msgspec.json.encode(one)) for one in sold])
        with Client(KEY, status.collector) as client:
            for user in range(3 * len(ITEMS)):
                for step in range(3):
                    client.track(f"u{user}", "Product Viewed", {"product_id": ITEMS[(user + step) % len(ITEMS)].item_id})
        until(lambda: _recommended(demo) == len(ITEMS), 60, "the shop knows its items")
        yield demo


def _recommended(demo: Demo) -> int:
    found = httpx.get(f"{demo.shop}/api/v1/recommendations/nobody", params={"n": 50, "fields": "title", "category_cap": 50},
                      trust_env=False)  # fmt: skip
    return sum(bool(one["item"]["title"]) for one in found.json()["items"]) if found.status_code == 200 else 0


@pytest.mark.alone  # the second that the README promises
@pytest.mark.timeout(2 * STARTED_S + ENDED_S)
def test_clicks_in_the_demos_shop_change_it_within_a_second_with_reasons_and_are_on_the_dashboard(
    demo: Demo, browser: Browser, page: Page
) -> None:
    looking = browser.new_page()
    surfaces.opened(looking, demo.dashboard)
    events = looking.locator('[data-tile="events"]')
    expect(events).to_have_text(f"{9 * len(ITEMS)}")
    page.goto(demo.shop)
    expect(page.locator("#for-you .reason").first).to_be_visible()
    page.evaluate(STOPWATCH)
    for number, thing in enumerate(("Red mug", "Red spade", "Red lamp", "Red rug"), 1):
        page.locator("#shelf .open", has_text=thing).click()
        page.wait_for_function("(number) => tookMs.length >= number", arg=number)
        expect(page.locator("#for-you .reason", has_text=f"because of {thing}").first).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#product")).not_to_be_visible()
    soon_enough(page.evaluate("tookMs"))
    looking.wait_for_function(
        "(before) => Number(document.querySelector('[data-tile=\"events\"]').innerText) >= before + 3", arg=9 * len(ITEMS))
    looking.close()
