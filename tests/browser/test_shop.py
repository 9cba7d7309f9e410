"""The demo shop in a browser: a click changes what is recommended within a second, says why, and reaches Kafka."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import msgspec
import pytest
from playwright.sync_api import Page, expect

from clickwake import topics as topic_admin
from clickwake.local import process
from schemas import topics
from schemas.catalog import Item
from stream.settings import Settings
from tests.support import bundles, surfaces
from tests.support.bundles import Exported
from tests.support.cluster import answers, lag, produce_events, read_all, running, until
from tests.support.fakes import event
from training.release import release as releases

ITEMS = [
    Item(item_id=f"i{n}", tenant="t", title=f"{colour} {thing}", brand="Wake", category=category, price=5.0 + n)
    for n, (colour, (thing, category)) in enumerate(
        (colour, one) for one in (("mug", "Kitchen"), ("spade", "Garden"), ("lamp", "Light"), ("rug", "Floor"))
        for colour in ("Red", "Green", "Blue"))
]  # fmt: skip
WITHIN_MS = 1_000  # from a click to other recommendations, or other reasons for them, on the page
WAITS_MS = 5_000  # as long the page itself waits for its click to be known
# Times clicks on products and, of each, the first change of what is recommended, as they are seen in the page
STOPWATCH = """() => {
  const row = document.getElementById("for-you"), said = () => row.innerText;
  let clicked = null, before = "";
  window.tookMs = [];
  addEventListener("click", (event) => {
    if (event.target.closest("#shelf .open")) { clicked = performance.now(); before = said(); } }, true);
  new MutationObserver(() => {
    if (clicked === null || said() === before) return;
    window.tookMs.push(performance.now() - clicked);
    clicked = null;
  }).observe(row, {childList: true, subtree: true, characterData: true});
}"""


@pytest.fixture(scope="module")
def shop(lasting: Settings, exported: Exported) -> Iterator[tuple[Settings, str]]:
    """Everything a shop needs, running; the address of its page. Each test is a visitor of its own."""
    settings = lasting
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
            until(lambda url=url: answers(url), 60, f"{name} is ready")
        until(lambda: lag(settings, "personalize", topics.EVENTS) == 0, 60, "history is folded")
        yield settings, f"http://127.0.0.1:{ports['SHOP']}"


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


def soon_enough(took_ms: list[float]) -> None:
    """Of clicks, the first left out."""
    print(f"changed {', '.join(f'{one:.0f}' for one in took_ms)} ms after the click")
    assert median(took_ms[1:]) < WITHIN_MS and max(took_ms[1:]) < WAITS_MS, took_ms


@pytest.mark.alone  # the second that the README promises, seen in the page
def test_clicks_change_it_within_a_second(shop: tuple[Settings, str], page: Page) -> None:
    """As the page sees it: after the first, which may find everything cold, half of them do, and none that the page would
    give up on, though broker, shop and tests share this machine."""
    _, url = shop
    page.goto(url)
    expect(page.locator("#for-you .reason").first).to_be_visible()
    page.evaluate(STOPWATCH)
    for number, thing in enumerate(("mug", "spade", "lamp", "rug"), 1):
        page.locator("#shelf .open", has_text=thing).last.click()
        page.wait_for_function("(number) => tookMs.length >= number", arg=number)
        page.keyboard.press("Escape")
        expect(page.locator("#product")).not_to_be_visible()
    soon_enough(page.evaluate("tookMs"))


def test_what_the_page_shows_is_known_in_its_order_too(shop: tuple[Settings, str], page: Page) -> None:
    """Or a click that was made meanwhile would not find its moment in an answer that knows of that already."""
    _, url = shop
    page.goto(url)
    expect(page.locator("#for-you .reason").first).to_be_visible()
    page.evaluate("""() => {
      const track = clickwake.track;
      window.told = [];
      clickwake.track = (...what) => { const id = track(...what); told.push([what[0], id]); return id; };
    }""")
    page.locator("#shelf .open").first.click()
    expect(page.locator("#freshness")).to_contain_text("after your click")
    assert [name for name, _ in page.evaluate("told")] == ["Product Viewed", "Product List Viewed"]
    assert page.evaluate("sent.slice(-2)") == [ident for _, ident in page.evaluate("told")]


def test_it_can_be_used_by_keyboard_on_a_phone_and_in_the_dark(shop: tuple[Settings, str], page: Page) -> None:
    _, url = shop
    page.set_viewport_size(surfaces.PHONE)
    page.goto(url)
    expect(page.locator("#shelf li").first).to_be_visible()
    expect(page.locator("#categories button").first).to_be_visible()
    surfaces.works_by_keyboard(page)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        surfaces.fits(page)
        surfaces.can_be_read(page)
    page.reload()
    expect(page.locator("#shelf li").first).to_be_visible()
    page.keyboard.press("Tab")  # the brand
    page.keyboard.press("Tab")  # the search
    page.keyboard.type("lamp")
    page.keyboard.press("Enter")
    expect(page.locator("#shelf-title")).to_contain_text("“lamp”")
    expect(page.locator("#shelf li")).to_have_count(3)
    page.locator("#shelf .open").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#product-title")).to_contain_text("lamp")
    surfaces.fits(page)
    surfaces.can_be_read(page)
    page.keyboard.press("Escape")
    expect(page.locator("#product")).not_to_be_visible()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(22, 25, 29)"
    if folder := os.environ.get("CLICKWAKE_TEST_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / "shop-phone.png")
