"""The dashboard in a browser, over a shop with history: every page has its figures, in two languages, on a phone, in the
dark, and says what does not answer."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from kafka import KafkaProducer
from playwright.sync_api import Page, expect

from clickwake import process
from clickwake import topics as topic_admin
from clickwake.dashboard import accounts, frame, models_page
from clickwake.dashboard.words import CHINESE
from schemas import topics
from schemas.opinions import Opinion, Quote, SatisfactionAlert
from schemas.outputs import Decision, OfferBudget, OfferCost, Offered
from stream.settings import Settings
from tests.support import bundles
from tests.support.bundles import Exported
from tests.support.cluster import lag, produce_events, read_all, running, until
from tests.support.fakes import event
from training import release as releases

HOUR_MS = 3_600_000
EVENTS = 280  # of the shop, beside reactions to offers
PASSWORD = "a long way to the sea"  # noqa: S105 - of these tests


def shot(page: Page, name: str) -> None:
    if folder := os.environ.get("CLICKWAKE_TEST_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


@pytest.fixture
def dashboard(settings: Settings, exported: Exported) -> Iterator[tuple[Settings, str]]:
    topic_admin.create(settings)
    bundles.put_vectors(settings)
    learned_until = datetime.now(UTC) - timedelta(hours=36)
    releases.release(settings, bundles.publish(settings.registry, exported, data_to=learned_until).model_version)
    settings.home.mkdir(parents=True, exist_ok=True)
    settings.segments_file.write_text("rfm: true\nsegments:\n  - {name: lookers, when: views_7d >= 2 and orders == 0}\n")
    now_ms = time.time_ns() // 1_000_000
    names = ["Product Viewed", "Product Viewed", "Product Added", "Checkout Started", "Order Completed"]
    events = [event(user=f"u{n % 12}", item=f"i{n % 12}", id=f"m{n}", ts_ms=now_ms - 72 * HOUR_MS + n * HOUR_MS // 4,
                    name=names[(n // 12) % 5], properties={"product_id": f"i{n % 12}", "price": 5.0})
              for n in range(EVENTS)]  # fmt: skip
    spoilt = event(user="u1", id="m-spoilt", ts_ms=now_ms - HOUR_MS, properties={"product_id": "i1", "price": "9,50 €"})
    ports = {name: str(process.free_port()) for name in ("API", "DASHBOARD")}
    env = {f"CLICKWAKE_{name}__PORT": port for name, port in ports.items()} | {
        "CLICKWAKE_API__READ_KEYS": '{"t": "read"}', "CLICKWAKE_SHOP__TENANT": "t",
        "CLICKWAKE_PERSONALIZE__RECOMMEND_INTERVAL_MS": "0"}  # fmt: skip
    with ExitStack() as stack:
        for module in ("workers.personalize", "workers.sink", "workers.api", "clickwake.dashboard"):
            stack.enter_context(running(settings, module, **env))
        decide(settings)
        say(settings)
        sent = produce_events(settings, [*events, *reactions(now_ms), (b"t/u1", json.dumps(spoilt).encode())])
        url = f"http://127.0.0.1:{ports['DASHBOARD']}"
        until(lambda: lag(settings, "personalize", topics.EVENTS) == 0, 60, "folded")
        with_sink = f"{settings.kafka.topic_prefix}.sink"
        until(lambda: _stored(settings, "events") >= sent - 1, 60, f"{with_sink} stored all")
        until(lambda: _stored(settings, "opinions") + _stored(settings, "satisfaction_alerts") == 11, 60, "opinions stored")
        for address in (url, f"http://127.0.0.1:{ports['API']}/health/ready"):
            until(lambda address=address: _answers(address), 60, f"{address} answers")
        yield settings, url


def decide(settings: Settings) -> None:
    """Offers to twelve users: four are held out and see nothing."""
    producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers, acks="all")
    for n in range(12):
        offered = Offered(
            placement="home", offer_id="" if n % 3 == 0 else f"offer {n % 3}", propensity=0.5, candidates={}, refused={},
            holdout=n % 3 == 0, rules_version="r", policy_version="p", reward="click", window_ms=HOUR_MS, about=(),
            groups=(), cost=OfferCost(impression=0.1, click=0.5), budget=OfferBudget(impressions=8, money=10.0))  # fmt: skip
        made = Decision(
            recommendation_id=f"offer-{n}", tenant="t", user_id=f"u{n}", scenario="offer", items=(), candidates=2,
            as_of_event_id="m", as_of_ts=datetime.now(UTC), served_at=datetime.now(UTC), model_version="p", offer=offered,
        )  # fmt: skip
        producer.send(topics.DECISIONS.name(settings.kafka.topic_prefix), key=f"t/u{n}".encode(),
                      value=msgspec.json.encode(made)).get(30)  # fmt: skip
    producer.close()


def reactions(now_ms: int) -> list[dict[str, Any]]:
    """Who saw an offer, and who clicked: 4 of "offer 1", all of whom click, and 4 of "offer 2"."""
    shown = [n for n in range(12) if n % 3]
    named = [(n, "Promotion Viewed") for n in shown] + [(n, "Promotion Clicked") for n in shown if n % 3 == 1]
    return [event(user=f"u{n}", id=f"{name} {n}", item=None, name=name, ts_ms=now_ms - 3 * HOUR_MS,
                  properties={"recommendation_id": f"offer-{n}"}) for n, name in named]  # fmt: skip


def say(settings: Settings) -> None:
    """Ten opinions of an item of the brand Clay, the last five of them bad, and the alert about it."""
    now = datetime.now(UTC)
    opinions = [Opinion(
        opinion_id=f"o{n}", tenant="t", user_id=f"u{n}", event_id=f"said {n}", source="review", lane="live",
        said_at=now - timedelta(days=10 - n), item_id="i1", brand="Clay", language="en",
        satisfaction=1.0 if n < 5 else 0.25, stars=5.0 if n < 5 else 2.0, stars_read=None, p_satisfied=None, aspects=(),
        telling="The handle broke." if n == 9 else "It is blue.", model_version="",
    ) for n in range(10)]  # fmt: skip
    alert = SatisfactionAlert(
        alert_id="a1", tenant="t", about="brand", name="Clay", state="raised", number=1, changed_at=opinions[5].said_at,
        as_of_ts=now, before=1.0, after=0.25, opinions_before=5, opinions_after=5, opinions_per_false_alarm=1000,
        evidence=(Quote(opinion_id="o9", sentence="The handle broke.", satisfaction=0.25, said_at=now),))
    producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers, acks="all")
    for topic, records in ((topics.OPINIONS, opinions), (topics.SATISFACTION_ALERTS, [alert])):
        for record in records:
            producer.send(topic.name(settings.kafka.topic_prefix), key=b"t/Clay", value=msgspec.json.encode(record)).get(30)
    producer.close()


def _answers(url: str) -> bool:
    return _status(url) == 200


def _stored(settings: Settings, table: str) -> int:
    from contextlib import closing

    from stream.adapters import clickhouse

    with closing(clickhouse.open_client(settings.clickhouse)) as client:
        if not client.query(f"EXISTS TABLE {settings.clickhouse.database}.{table}").first_row[0]:
            return 0
        return int(client.query("SELECT count() FROM {table:Identifier} FINAL", {"table": table}).first_row[0])


def test_every_page_has_its_figures(dashboard: tuple[Settings, str], page: Page) -> None:
    settings, url = dashboard
    page.goto(url)
    expect(page.locator('[data-tile="events"]')).to_have_text(str(EVENTS + len(reactions(0))))
    expect(page.locator('[data-tile="users"]')).to_have_text("12")
    expect(page.locator('[data-tile="letters"]')).to_have_text("1")
    expect(page.locator("canvas").first).to_be_visible()
    shot(page, "dashboard-live")
    page.get_by_role("link", name="Segments").click()
    row = page.get_by_role("row", name=re.compile("lookers|rfm"))
    row.first.locator(".q-checkbox, td").first.click()
    expect(page.get_by_text("Members of")).to_be_visible()
    expect(page.locator("a[href*='/users/u']").first).to_be_visible()
    shot(page, "dashboard-segments")
    page.get_by_role("link", name="Churn").click()
    expect(page.get_by_text("Alerts raised, newest first")).to_be_visible()
    shot(page, "dashboard-churn")
    page.get_by_role("link", name="Recommendations").click()
    expect(page.get_by_text("Hit rate of recommendations, by model")).to_be_visible()
    shot(page, "dashboard-recommendations")
    page.get_by_role("link", name="Promotions").click()
    expect(page.get_by_role("row", name=re.compile("home.*offer 1.*1"))).to_be_visible()
    expect(page.get_by_role("cell", name="not known yet")).to_be_visible()  # eight and four users say nothing
    expect(page.get_by_role("row", name=re.compile("offer 1.*50%"))).to_be_visible()  # 4 of 8 impressions
    expect(page.locator("canvas")).to_have_count(3)
    shot(page, "dashboard-promotions")
    page.get_by_role("link", name="Satisfaction").click()
    expect(page.locator('[data-alert="fell"]')).to_contain_text("Clay fell: 1.00 → 0.25")
    expect(page.get_by_text("“The handle broke.”")).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("Clay.*10"))).to_be_visible()
    expect(page.locator("canvas")).to_have_count(1)
    shot(page, "dashboard-satisfaction")
    page.get_by_role("link", name="Models").click()
    expect(page.locator('[data-drift="event"]')).to_contain_text("PSI")
    expect(page.locator("canvas")).to_have_count(2)
    expect(page.get_by_role("cell", name="in use")).to_be_visible()
    shot(page, "dashboard-models")
    page.get_by_role("link", name="Dead letters").click()
    page.get_by_role("row", name=re.compile("properties.price")).locator(".q-checkbox, td").first.click()
    expect(page.locator("[data-fit]")).to_have_text("1 / 1 would be taken once mended")
    shot(page, "dashboard-letters")
    page.get_by_role("button", name="Send again").click()
    expect(page.get_by_text("Sent again: 1")).to_be_visible()
    page.get_by_role("link", name="Users").click()
    page.get_by_label("Find a user by id").fill("u3")
    page.keyboard.press("Enter")
    expect(page.get_by_text("What is recommended now")).to_be_visible()
    expect(page.get_by_role("cell", name="Product Viewed").first).to_be_visible()
    expect(page.locator("canvas").first).to_be_visible()
    expect(page.get_by_text("Nearest by vectors to what was looked at last")).to_be_visible()
    why = page.get_by_label("Why, or why not: an item's id")
    for item, told in (("i3", re.compile("i3: (place|not among)")), ("no such item", re.compile("no such item"))):
        why.fill(item)
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_have_text(told)
    shot(page, "dashboard-user")
    page.get_by_role("button", name="Forget this user").click()
    page.get_by_role("button", name="Erase").click()
    expect(page.get_by_text("The request was taken")).to_be_visible()
    assert len(read_all(settings, topics.ERASURES)) == 1


def test_in_chinese_on_a_phone_in_the_dark_and_without_its_stores(dashboard: tuple[Settings, str], page: Page) -> None:
    _, url = dashboard
    page.set_viewport_size({"width": 390, "height": 800})
    page.emulate_media(color_scheme="dark")
    page.goto(f"{url}?lang=zh")
    expect(page.get_by_role("link", name="实时")).to_be_visible()
    expect(page.locator('[data-tile="events"]')).to_have_text(str(EVENTS + len(reactions(0))))
    assert page.evaluate("document.body.classList.contains('body--dark')")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1"), "nothing sticks out"
    shot(page, "dashboard-phone-zh")
    page.goto(f"{url}/promotions?lang=zh")
    expect(page.locator("canvas").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1"), "nothing sticks out"
    shot(page, "dashboard-phone-promotions-zh")
    page.goto(f"{url}/models?lang=zh")
    expect(page.locator("[data-drift]").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1"), "nothing sticks out"
    shot(page, "dashboard-phone-models-zh")
    page.goto(f"{url}/users/nobody")
    expect(page.get_by_text("Nothing is known of this user.")).to_be_visible()
    page.goto(f"{url}/users?tenant=a%27-alert(1)-%27")
    page.get_by_label("Find a user by id").fill("x")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("read key of tenant")


def test_one_signs_in_and_sees_what_the_role_lets_one_see(settings: Settings, page: Page, tmp_path: Path) -> None:
    path = settings.home / "dashboard-accounts.json"
    bob = accounts.new("bob", "read", PASSWORD)
    accounts.write(path, {"bob": bob, "ann": accounts.new("ann", "admin", PASSWORD)})
    port = process.free_port()
    url = f"http://127.0.0.1:{port}"
    with running(settings, "clickwake.dashboard", CLICKWAKE_DASHBOARD__PORT=str(port)):
        until(lambda: _status(f"{url}/sign-in") == 200, 60, "the dashboard answers")
        assert _status(f"{url}/churn") == 401
        page.goto(f"{url}/users/u1")
        page.get_by_label("Name").fill("bob")
        page.get_by_label("Password").fill("not it, but long")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("Name or password is wrong.")
        shot(page, "dashboard-sign-in")
        page.get_by_label("Name").fill("bob")
        page.get_by_label("Password").fill(PASSWORD)
        page.keyboard.press("Enter")
        expect(page).to_have_url(f"{url}/users/u1")
        expect(page.get_by_role("alert").first).to_contain_text("does not answer")  # there is no ClickHouse in this test
        assert page.get_by_role("button", name="Forget this user").count() == 0
        page.get_by_label("Dark or light").click()  # the socket is let through too
        expect(page.locator("body.body--dark")).to_be_visible()
        accounts.write(path, {"ann": accounts.read(path)["ann"]})
        expect(page.get_by_label("Password")).to_be_visible(timeout=20_000)  # bob is gone, and so is his page
        page.get_by_label("Name").fill("ann")
        page.get_by_label("Password").fill(PASSWORD)
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Sign out (ann)").click()
        expect(page.get_by_label("Password")).to_be_visible()
        page.goto(f"{url}/churn")
        expect(page.get_by_label("Password")).to_be_visible()


def _status(url: str) -> int:
    try:
        return httpx.get(url, trust_env=False, timeout=30).status_code
    except httpx.HTTPError:
        return 0


def test_every_word_has_its_chinese() -> None:
    modules = sorted(Path(frame.__file__).parent.glob("*.py"))
    source = "\n".join(path.read_text() for path in modules if path.name != "charts.py")
    used = set(re.findall(r'\bt\("([^"]+)"\)', source)) | set(frame.NAV.values()) | set(models_page.FEATURES.values())
    used |= {label for columns in re.findall(r"\{((?:\s*\"\w+\": \"[^\"]*\",?)+)\s*\}", source)
             for label in re.findall(r': "([^"]+)"', columns)}  # fmt: skip
    assert len(used) > 50
    assert {word for word in used if word not in CHINESE and not word.startswith("/")} == set()
