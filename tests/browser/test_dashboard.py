"""The dashboard in a browser, over a shop with history: every page has its figures, can be read, in the dark too, fits a
phone, does by keys what it does by pointer, speaks the visitor's language, and says what does not answer."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from clickwake import topics as topic_admin
from clickwake.dashboard import accounts, frame
from clickwake.local import process
from schemas import topics
from schemas.topics import Topic
from stream.adapters.database import clickhouse as adapter
from stream.adapters.health.lag import Lag
from stream.settings import Settings
from stream.sink.consumer import group as sink_group
from tests.support import bundles, surfaces
from tests.support.bundles import Exported
from tests.support.cluster import lag, read_all, running, until
from tests.support.shop_history import (
    ALERTS,
    EVENTS,
    OLD_MODEL,
    PLANTED,
    SAID,
    SEGMENTS,
    reactions,
    recommended_at,
    tell,
)
from training.release import release as releases

PASSWORD = "a long way to the sea"  # noqa: S105 - of these tests
PAGES = [*frame.NAV, "/users/u3"]
# What is not Chinese on a Chinese page: names, and what stands in the records
NAMES = r"Clickwake|Kafka|ClickHouse|UTC|PSI|NDCG@10|Recall@20"
DATA = "|".join((
    r"[ui]\d+", r"thing \d+", r"lookers|(lifecycle|rfm)/[a-z ]+", r"(views_7d|orders|order_days|days_\w+) [\d.e+]+",
    r"views_7d >= 2 and orders == 0",
    r"Product Viewed|Product Added|Cart Viewed|Checkout Started|Order Completed|Promotion Viewed|Promotion Clicked",
    r"home|offer \d",
    r"Clay|The handle broke\.", r"\d{8}T\d{6}Z-[0-9a-f]{8}", r"\d{4}-\d\d-\d\dT[\d:]+", r"[0-9a-f]{16,}",
    r"properties\.price.*", r"Expected `.*",  # what a dead letter says
))  # fmt: skip


def shot(page: Page, name: str) -> None:
    if folder := os.environ.get("CLICKWAKE_TEST_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


@pytest.fixture(scope="module")
def now() -> datetime:
    """The present of the shop's history."""
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def dashboard(lasting: Settings, exported: Exported, now: datetime) -> Iterator[tuple[Settings, str]]:
    """One for all tests here: what they change, none of the others looks at."""
    settings = lasting
    topic_admin.create(settings)
    bundles.put_vectors(settings)
    learned_until = now - timedelta(hours=36)
    releases.release(settings, bundles.publish(settings.registry, exported, data_to=learned_until).model_version)
    settings.segments_file.write_text(SEGMENTS)
    ports = {name: str(process.free_port()) for name in ("API", "DASHBOARD")}
    env = {f"CLICKWAKE_{name}__PORT": port for name, port in ports.items()} | {
        "CLICKWAKE_API__READ_KEYS": '{"t": "read"}', "CLICKWAKE_SHOP__TENANT": "t",
        "CLICKWAKE_PERSONALIZE__RECOMMEND_INTERVAL_MS": "0"}  # fmt: skip
    with ExitStack() as stack:
        for module in ("workers.personalize", "workers.sink", "workers.api", "clickwake.dashboard"):
            stack.enter_context(running(settings, module, **env))
        told = tell(settings, now)
        url = f"http://127.0.0.1:{ports['DASHBOARD']}"
        until(lambda: lag(settings, "personalize", topics.EVENTS) == 0, 60, "folded")
        until(lambda: _stored(settings, "events") >= told, 60, "events stored")
        until(lambda: sum(_stored(settings, one) for one in ("opinions", "satisfaction_alerts")) == SAID, 60, "said")
        until(lambda: _stored(settings, "churn_alerts") >= ALERTS, 60, "alerts stored")
        until(lambda: _waiting(settings, *PLANTED) == 0, 60, "all that was planted stored")
        _outlived(settings, now)
        for address in (url, f"http://127.0.0.1:{ports['API']}/health/ready"):
            until(lambda address=address: _status(address) == 200, 60, f"{address} answers")
        yield settings, url


def _outlived(settings: Settings, now: datetime) -> None:
    """A dead letter that Kafka no longer keeps."""
    columns = {"tenant": "t", "dead_letter_id": "0123456789abcdef", "kind": "undecodable", "failed_at": now,
               "paths": ["properties.prices"], "keywords": ["type"], "messages": ["Expected `array`, got `int`"],
               "first_seen": now, "partition_time": now}  # fmt: skip
    with closing(adapter.open_client(settings.clickhouse)) as client:
        client.insert("dead_letters", [list(columns.values())], column_names=list(columns))


def _stored(settings: Settings, table: str) -> int:
    with closing(adapter.open_client(settings.clickhouse, "default")) as client:  # the sink may be making its own yet
        if not client.query(f"EXISTS TABLE {settings.clickhouse.database}.{table}").first_row[0]:
            return 0
    with closing(adapter.open_client(settings.clickhouse)) as client:
        return int(client.query("SELECT count() FROM {table:Identifier} FINAL", {"table": table}).first_row[0])


def _waiting(settings: Settings, *topics_of_it: Topic) -> int:
    """Records that the sink has not stored yet."""
    with Lag(settings) as seen:
        return seen.of(sink_group(settings), seen.ends(*topics_of_it))


def picture(page: Page, title: str) -> Locator:
    """What says in words what is drawn."""
    return page.locator(f'[aria-label^="{title}"]')


def row_of(page: Page, *cells: str) -> Locator:
    """Of a table; a cell's pattern."""
    return page.get_by_role("row", name=re.compile(f"^{' '.join(cells)}$"))


def _funnel(settings: Settings) -> list[int]:
    """Users of a day who took so many steps one after the other, counted by hand."""
    steps = ("Product Viewed", "Product Added", "Checkout Started", "Order Completed")
    with closing(adapter.open_client(settings.clickhouse)) as client:
        events = client.query("SELECT user, timestamp, event FROM events FINAL ORDER BY timestamp").result_rows
    took: Counter[tuple[str, date]] = Counter()
    for user, at, name in events:
        if took[user, at.date()] < len(steps) and name == steps[took[user, at.date()]]:
            took[user, at.date()] += 1
    return [sum(count >= step for count in took.values()) for step in range(1, len(steps) + 1)]


def _active(settings: Settings) -> tuple[date, int, int]:
    """Of the last day: how many came for the first time, and how many again, counted by hand."""
    with closing(adapter.open_client(settings.clickhouse)) as client:
        came = {(user, at.date()) for user, at in client.query("SELECT user, timestamp FROM events FINAL").result_rows}
    first = {user: min(day for one, day in came if one == user) for user, _ in came}
    last = max(day for _, day in came)
    new = sum(day == last for day in first.values())
    return last, new, sum(day == last for _, day in came) - new


def _drawn(page: Page, title: str) -> list[float]:
    """The values of a picture's first series."""
    found: list[float] = picture(page, title).evaluate("chart => getElement(chart.id.slice(1)).options.series[0].data")
    return found


def _asked(settings: Settings, path: str) -> Any:
    """The read API itself."""
    port = json.loads((settings.home / "run" / "api.json").read_text())["port"]
    answer = httpx.get(f"http://127.0.0.1:{port}{path}", auth=("read", ""), timeout=30, trust_env=False)
    return answer.raise_for_status().json()


def test_every_page_has_its_figures(dashboard: tuple[Settings, str], now: datetime, page: Page) -> None:
    settings, url = dashboard
    page.goto(url)
    expect(page.locator('[data-tile="events"]')).to_have_text(str(EVENTS + len(reactions(0))))
    expect(page.locator('[data-tile="users"]')).to_have_text("12")
    expect(page.locator('[data-tile="letters"]')).to_have_text("2")
    expect(page.locator(".chart svg").first).to_be_visible()
    steps = _funnel(settings)
    assert steps[0] >= steps[1] > steps[2] >= steps[3] > 0, "u11 buys without a checkout"
    words = (f"{step} {count:,} · {count / steps[0]:.0%}"
             for step, count in zip(("viewed", "added to cart", "checkout", "ordered"), steps, strict=True))
    expect(picture(page, "Funnel")).to_have_attribute(
        "aria-label", f"Funnel, the last 30 days with events: {'; '.join(words)}")  # fmt: skip
    assert 0 < sum(_drawn(page, "Events per 10 seconds")) <= EVENTS + len(reactions(0))
    day, new, returning = _active(settings)
    assert returning > 0
    expect(picture(page, "Active users")).to_have_attribute("aria-label", re.compile(
        rf"new .*\b{new} \({day:%m-%d}\); returning .*\b{returning} \({day:%m-%d}\)$"))  # fmt: skip
    shot(page, "dashboard-live")
    page.get_by_role("link", name="Segments").click()
    surfaces.is_live(page, "/segments")
    row = page.get_by_role("row", name=re.compile("lookers|rfm"))
    row.first.locator(".q-checkbox, td").first.click()
    expect(page.get_by_text("Members of")).to_be_visible()
    expect(page.locator("a[href*='/users/u']").first).to_be_visible()
    expect(page.get_by_role("row", name="lifecycle/new")).to_contain_text("first seen within a week")
    shot(page, "dashboard-segments")
    page.get_by_role("link", name="Churn").click()
    expect(page.get_by_text("Alerts raised, newest first")).to_be_visible()
    # model, days, raised, judged, right, precision, as said, pending
    expect(row_of(page, OLD_MODEL, "1", "3", "3", "1", "0.3333", "0.8", "0")).to_be_visible()
    expect(row_of(page, OLD_MODEL, "14", "1", "0", "0", "1")).to_be_visible()
    why = "silent for 9.0 days, usually back after 2.0; 2 orders in 3 active days"
    at = f"{now - timedelta(days=2):%Y-%m-%d %H:%M:%S}"
    expect(row_of(page, at, "u0", "0.8", "1", why, "wrong")).to_be_visible()
    for user, days, outcome in (("u1", 14, "pending"), ("u2", 1, "wrong"), ("u12", 1, "correct")):
        expect(row_of(page, at, user, "0.8", str(days), "silent for 9.0 days, [^ ].*", outcome)).to_be_visible()
    shot(page, "dashboard-churn")
    page.get_by_role("link", name="Recommendations").click()
    expect(page.get_by_text("Hit rate of recommendations, by model")).to_be_visible()
    first, second = (f"{at:%Y-%m-%d}" for at in recommended_at(now))
    expect(picture(page, "Hit rate within a day")).to_have_attribute(
        "aria-label", re.compile(rf"over time: .*{OLD_MODEL} 0\.25 \({first}\), 0\.75 \({second}\)"))
    expect(page.locator(".chart svg")).to_contain_text(OLD_MODEL)
    # model, within, emissions, hits, hit rate, ordered, pending
    for figures in (("1h", "8", "0", "0", "0", "0"), ("1d", "8", "4", "0.5", "4", "0"), ("7d", "0", "0", "0", "8")):
        expect(row_of(page, OLD_MODEL, *figures)).to_be_visible()
    shot(page, "dashboard-recommendations")
    page.get_by_role("link", name="Promotions").click()
    expect(page.get_by_role("row", name=re.compile("home.*offer 1.*1"))).to_be_visible()
    expect(page.get_by_role("cell", name="not known yet")).to_be_visible()  # eight and four users say nothing
    expect(page.get_by_role("row", name=re.compile("offer 1.*50%"))).to_be_visible()  # 4 of 8 impressions
    expect(page.locator(".chart svg")).to_have_count(3)
    shot(page, "dashboard-promotions")
    page.get_by_role("link", name="Satisfaction").click()
    expect(page.locator('[data-alert="fell"]')).to_contain_text("Clay fell: 1.00 → 0.25")
    expect(page.get_by_text("“The handle broke.”")).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("Clay.*10"))).to_be_visible()
    # item, title, opinions, satisfaction, shrunk, unhappy, tickets
    expect(row_of(page, "i1( thing 1)?", "10", "0.625", "0.625", "0.5", "0")).to_be_visible()
    expect(page.locator(".chart svg")).to_have_count(1)
    shot(page, "dashboard-satisfaction")
    page.get_by_role("link", name="Models").click()
    expect(page.locator('[data-drift="event"]')).to_contain_text("PSI")
    expect(page.locator(".chart svg")).to_have_count(2)
    expect(page.get_by_role("cell", name="in use")).to_be_visible()
    shot(page, "dashboard-models")
    page.get_by_role("link", name="Dead letters").click()
    surfaces.is_live(page, "/dead-letters")
    price, prices = (page.get_by_role("row", name=re.compile(rf"properties\.{one}\b")) for one in ("price", "prices"))
    prices.locator(".q-checkbox, td").first.click()
    expect(page.locator("[data-gone]")).to_contain_text("cannot be sent again")
    price.locator(".q-checkbox, td").first.click()
    expect(page.locator("[data-fit]")).to_have_text("1 / 1 would be taken once mended")
    shot(page, "dashboard-letters")
    page.get_by_role("button", name="Send again").click()
    expect(page.get_by_text("Sent again: 1")).to_be_visible()
    expect(price).to_have_count(0)
    expect(prices).to_be_visible()
    events = [json.loads(record.value) for record in read_all(settings, topics.EVENTS)]
    assert [one["messageId"] for one in events if one.get("lane") == "repair"] == ["m-spoilt"]
    page.get_by_role("link", name="Live", exact=True).click()
    expect(page.locator('[data-tile="letters"]')).to_have_text("1")
    page.get_by_role("link", name="Users").click()
    surfaces.is_live(page, "/users")
    page.get_by_label("Find a user by id").fill("u3")
    page.keyboard.press("Enter")
    expect(page.get_by_text("What is recommended now")).to_be_visible()
    expect(page.get_by_role("cell", name="Product Viewed").first).to_be_visible()
    known = _asked(settings, "/v1/users/u3")["churn"]
    days, chance = min(known["curve"], key=lambda one: abs(one[0] - known["silent_days"]))
    expect(picture(page, "Chance of still being away")).to_have_attribute(
        "aria-label", f"Chance of still being away, by days of silence: {chance:.2f} ({days:g})")  # fmt: skip
    expect(page.get_by_text("Nearest to the user's own vector")).to_be_visible()
    expect(page.get_by_role("columnheader", name="cosine")).to_be_visible()
    expect(page.get_by_text("Items like the last one dealt with: i")).to_be_visible()
    why = page.get_by_label("Why, or why not: an item's id")
    said = _asked(settings, "/v1/why/u3/i3")
    place = f"place {said['place']} of {said['of_items']}" if said["place"] else "not among those to choose from"
    for item, told in (("i3", re.compile(f"i3: {place}")), ("no such item", re.compile("no such item"))):
        why.fill(item)
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_have_text(told)
    shot(page, "dashboard-user")
    page.get_by_role("button", name="Forget this user").click()
    expect(page.get_by_role("dialog")).to_contain_text("user u3 of tenant t")
    surfaces.at_rest(page)
    page.get_by_role("button", name="Erase").click()
    expect(page.get_by_text("The request was taken")).to_be_visible()
    (asked,) = (json.loads(record.value) for record in read_all(settings, topics.ERASURES))
    assert (asked["tenant"], asked["user_id"]) == ("t", "u3")


def test_segments_are_known_as_of_any_time(dashboard: tuple[Settings, str], now: datetime, page: Page) -> None:
    """Of u12, who was in one from five days to four days ago, and u13, who came half a day after."""
    _, url = dashboard
    heard: list[str] = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda data: heard.append(str(data))))
    surfaces.opened(page, f"{url}/segments")
    members = page.locator("a[href*='/users/u']")
    box = page.get_by_label("as of (UTC)")
    page.get_by_role("checkbox", name="lookers", exact=True).click()
    expect(page.get_by_text("Members of lookers")).to_be_visible()
    assert '"selected":[{' in next(one for one in heard if '"update"' in one), "no table is drawn anew before one chooses"
    expect(members.filter(has_text="u13")).to_be_visible()
    for hours, inside in ((119, ["u12"]), (107, ["u13", "u12"]), (95, ["u13"]), (121, list[str]())):
        box.fill(f"{now - timedelta(hours=hours):%Y-%m-%dT%H:%M:%SZ}")
        box.press("Enter")
        expect(members).to_have_text(inside)
        if hours == 119:
            entered, left = (f"{now - timedelta(hours=one):%Y-%m-%d %H:%M:%S}" for one in (120, 96))
            expect(row_of(page, "u12", entered, left, "views_7d 2, orders 0")).to_be_visible()
    expect(page.get_by_text("Nothing here yet.")).to_be_visible()
    box.fill("yesterday")
    box.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("yesterday")


def look_closer(page: Page, path: str) -> None:
    """By keys alone: choose a row, or ask why; then the page has more to say."""
    if path in ("/segments", "/dead-letters"):
        page.get_by_role("checkbox").first.focus()
        page.keyboard.press("Space")
        expect(page.locator("a[href*='/users/u'], [data-fit]").first).to_be_visible()
        expect(page.get_by_role("checkbox").first).to_be_focused()
    elif path.startswith("/users/"):
        page.get_by_role("textbox").focus()
        page.keyboard.type("i3")
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_contain_text("i3")


@pytest.mark.parametrize("path", PAGES)
def test_all_can_use_it(dashboard: tuple[Settings, str], page: Page, path: str) -> None:
    """At a desk by keyboard and screen reader, in English; on a phone in the dark, in Chinese."""
    _, url = dashboard
    surfaces.opened(page, f"{url}{path}")
    look_closer(page, path)
    surfaces.can_be_read(page)
    surfaces.works_by_keyboard(page)
    page.set_viewport_size(surfaces.PHONE)
    page.emulate_media(color_scheme="dark")
    surfaces.opened(page, f"{url}{path}?lang=zh")
    look_closer(page, path)
    assert page.evaluate("document.body.classList.contains('body--dark')")
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    shot(page, f"dashboard-phone-zh{path.replace('/', '-')}")
    surfaces.fits(page)
    surfaces.can_be_read(page)
    left = (re.sub(f"{NAMES}|{DATA}", "", text) for text in surfaces.texts(page))
    assert [text for text in left if re.search("[A-Za-z]{2}", text)] == []


def test_keys_do_what_a_pointer_does(dashboard: tuple[Settings, str], page: Page) -> None:
    _, url = dashboard
    surfaces.opened(page, f"{url}/churn")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('main') !== null"), "past the links of every page"
    header = page.get_by_role("columnheader", name="at (UTC)", exact=True)
    header.get_by_role("button").focus()
    for order in ("ascending", "descending"):
        page.keyboard.press("Enter")
        expect(header).to_have_attribute("aria-sort", order)
    page.emulate_media(color_scheme="dark")
    expect(page.locator("body.body--dark")).to_be_visible()
    page.get_by_label("Dark or light").focus()
    for mode in ("light", "dark"):
        page.keyboard.press("Space")
        expect(page.locator(f"body.body--{mode}")).to_be_visible()
    page.get_by_role("link", name="中文").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("流失")
    surfaces.opened(page, f"{url}/users")
    page.get_by_role("textbox").focus()
    page.keyboard.type("u3")
    page.get_by_role("button", name="Look").focus()
    page.keyboard.press("Enter")
    surfaces.is_live(page, "/users/u3")
    expect(page.get_by_role("heading", level=1)).to_have_text("u3")
    forget, sure = page.get_by_role("button", name="Forget this user"), page.get_by_role("dialog")
    forget.focus()
    page.keyboard.press("Enter")
    expect(sure).to_be_visible()
    surfaces.can_be_read(page, dialog=".q-dialog__inner")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('[role=dialog]') !== null"), "the keys stay with the question"
    page.keyboard.press("Escape")
    expect(sure).not_to_be_visible()
    expect(forget).to_be_focused()


def test_a_table_that_is_sorted_has_the_rows_it_had(dashboard: tuple[Settings, str], page: Page) -> None:
    """Of a model there are several."""
    _, url = dashboard
    surfaces.opened(page, f"{url}/recommendations")
    table = page.get_by_role("table").first
    rows, header = table.locator("tbody tr"), table.get_by_role("columnheader", name="within")
    before = sorted(rows.all_inner_texts())
    assert len(before) >= 3
    for order in ("ascending", "descending"):
        header.get_by_role("button").click()
        expect(header).to_have_attribute("aria-sort", order)
        assert sorted(rows.all_inner_texts()) == before


def test_it_says_what_it_does_not_know(dashboard: tuple[Settings, str], page: Page) -> None:
    _, url = dashboard
    page.goto(f"{url}/users/nobody")
    expect(page.get_by_text("Nothing is known of this user.")).to_be_visible()
    surfaces.opened(page, f"{url}/users?tenant=a%27-alert(1)-%27")
    page.get_by_label("Find a user by id").fill("x")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("read key of tenant")


def test_one_signs_in_and_sees_what_the_role_lets_one_see(settings: Settings, page: Page, tmp_path: Path) -> None:
    path = settings.home / "dashboard-accounts.json"
    bob = accounts.new("bob", "read", PASSWORD, ("a", "b"))
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
        for scheme in ("dark", "light"):
            page.emulate_media(color_scheme=scheme)
            surfaces.can_be_read(page)
        surfaces.works_by_keyboard(page)
        page.get_by_role("link", name="中文").click()
        expect(page.get_by_label("密码")).to_be_visible()
        page.get_by_role("link", name="English").click()
        shot(page, "dashboard-sign-in")
        page.get_by_label("Name").fill("bob")
        page.get_by_label("Password").fill(PASSWORD)
        page.keyboard.press("Enter")
        expect(page).to_have_url(f"{url}/users/u1?lang=en")
        expect(page.get_by_role("alert").first).to_contain_text("does not answer")  # there is no ClickHouse in this test
        assert page.get_by_role("button", name="Forget this user").count() == 0
        surfaces.is_live(page, "/users/u1")
        page.get_by_text("Tenant a", exact=True).click()
        surfaces.can_be_read(page)
        surfaces.works_by_keyboard(page)
        page.get_by_role("link", name="b", exact=True).click()
        expect(page).to_have_url(f"{url}/users/u1?lang=en&tenant=b")
        expect(page.get_by_text("Tenant b", exact=True)).to_be_visible()
        accounts.write(path, {"ann": accounts.read(path)["ann"]})
        expect(page.get_by_label("Password")).to_be_visible(timeout=20_000)  # bob is gone, and his page, by its socket
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
