"""The demo shop in a browser: a click changes what is recommended within a second, says why, and reaches Kafka."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import msgspec
import pytest
from playwright.sync_api import Page, expect

from clickwake import process
from clickwake import topics as topic_admin
from schemas import topics
from schemas.catalog import Item
from stream.settings import Settings
from tests.support import bundles
from tests.support.bundles import Exported
from tests.support.cluster import lag, produce_events, read_all, running, until
from tests.support.fakes import event
from training import release as releases

ITEMS = [
    Item(item_id=f"i{n}", tenant="t", title=f"{colour} {thing}", brand="Wake", category=category, price=5.0 + n)
    for n, (colour, (thing, category)) in enumerate(
        (colour, one) for one in (("mug", "Kitchen"), ("spade", "Garden"), ("lamp", "Light"), ("rug", "Floor"))
        for colour in ("Red", "Green", "Blue"))
]  # fmt: skip
WITHIN_MS = 1_000


@pytest.fixture
def shop(settings: Settings, exported: Exported) -> Iterator[tuple[Settings, str]]:
    """Everything a shop needs, running; the address of its page."""
    topic_admin.create(settings)
    bundles.put_vectors(settings, ITEMS)
    releases.release(settings, bundles.publish(settings.registry, exported).model_version)
    now_ms = time.time_ns() // 1_000_000
    produce_events(settings, [event(user=f"u{n % 5}", item=f"i{n % 12}", id=f"m{n}", ts_ms=now_ms - 60_000 + n)
                              for n in range(60)])  # fmt: skip
    ports = {name: str(process.free_port()) for name in ("COLLECTOR", "API", "SHOP")}
    env = {f"CLICKWAKE_{name}__PORT": port for name, port in ports.items()} | {
        "CLICKWAKE_API__READ_KEYS": '{"t": "read"}', "CLICKWAKE_COLLECTOR__WRITE_KEYS": '{"t": "write"}',
        "CLICKWAKE_SHOP__TENANT": "t",
    }  # fmt: skip
    with ExitStack() as stack:
        for module in ("workers.personalize", "producers.collector", "workers.api", "clickwake.storefront"):
            stack.enter_context(running(settings, module, **env))
        for name, path in (("COLLECTOR", "/health/ready"), ("API", "/health/ready"), ("SHOP", "/")):
            url = f"http://127.0.0.1:{ports[name]}{path}"
            until(lambda url=url: _answers(url), 60, f"{name} is ready")
        until(lambda: lag(settings, "personalize", topics.EVENTS) == 0, 60, "history is folded")
        yield settings, f"http://127.0.0.1:{ports['SHOP']}"


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def test_a_click_changes_what_is_shown_and_why(shop: tuple[Settings, str], page: Page) -> None:
    settings, url = shop
    page.goto(url)
    recommended = page.locator("#for-you li")
    expect(recommended.first).to_be_visible()
    expect(page.locator("#shelf li").first).to_be_visible()
    before = recommended.evaluate_all("all => all.map(one => one.dataset.item)")
    assert 3 <= len(before) <= 10

    page.locator("#shelf .open", has_text="spade").first.click()
    expect(page.locator("#product-title")).to_contain_text("spade")
    expect(page.locator("#freshness")).to_contain_text("after your click")
    took_ms = int(page.locator("#for-you").get_attribute("data-took-ms") or 0)
    print(f"changed {took_ms} ms after the click")
    expect(page.locator("#product section").first).to_contain_text("Like this")
    page.locator("#product button", has_text="Put into the cart").click()
    expect(page.locator("#cart-count")).to_have_text("1")
    expect(page.locator("#history li").first).to_contain_text("put into the cart")
    assert recommended.evaluate_all("all => all.map(one => one.dataset.item)") != before

    page.locator("#for-you .reason").first.click()
    expect(page.locator("#product-title")).to_contain_text("Why")
    expect(page.locator("#product .bar").first).to_be_visible()
    expect(page.locator("#product")).to_contain_text("Place 1 of")
    page.locator("#product button", has_text="Close").click()

    page.locator("#cart-button").click()
    page.locator("#cart button", has_text="Buy").click()
    expect(page.locator("#known")).to_contain_text("orders1")
    if folder := os.environ.get("CLICKWAKE_TEST_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / "shop.png")
    page.wait_for_function("clickwake.flush()")
    events = [json.loads(record.value) for record in read_all(settings, topics.EVENTS) if b'"b-' in record.value]
    names = [one.get("event") for one in events if one["type"] == "track"]
    assert {"Product Viewed", "Product Added", "Order Completed", "Product List Viewed"} <= set(names)
    shown = {msgspec.json.decode(record.value)["recommendation_id"] for record in read_all(settings, topics.DECISIONS)}
    seen = {one["properties"]["recommendation_id"] for one in events if one.get("event") == "Product List Viewed"}
    assert seen <= shown, "what was seen is among the decisions that were logged"
    assert took_ms < 5 * WITHIN_MS, "the page gave up waiting"  # how fast it is, is measured by `clickwake bench api`


def test_it_can_be_used_by_keyboard_on_a_phone_and_in_the_dark(shop: tuple[Settings, str], page: Page) -> None:
    _, url = shop
    page.set_viewport_size({"width": 390, "height": 800})
    page.emulate_media(color_scheme="dark")
    page.goto(url)
    expect(page.locator("#shelf li").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing sticks out"
    page.keyboard.press("Tab")  # the brand
    page.keyboard.press("Tab")  # the search
    page.keyboard.type("lamp")
    page.keyboard.press("Enter")
    expect(page.locator("#shelf-title")).to_contain_text("“lamp”")
    expect(page.locator("#shelf li")).to_have_count(3)
    page.locator("#shelf .open").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#product-title")).to_contain_text("lamp")
    page.keyboard.press("Escape")
    expect(page.locator("#product")).not_to_be_visible()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(22, 25, 29)"
    if folder := os.environ.get("CLICKWAKE_TEST_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / "shop-phone.png")
