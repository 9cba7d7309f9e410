"""Pages of the dashboard without a browser: what they say while a store is away, of long tables, and to whom they open."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from clickhouse_connect.driver.exceptions import OperationalError
from nicegui import Client, ui
from starlette.requests import Request

from clickwake.dashboard import accounts, pages, promotions_page, queries, satisfaction_page
from clickwake.dashboard.accounts import Accounts
from clickwake.dashboard.frame import FAILS, SLOW, Page
from clickwake.dashboard.gate import ANYBODY
from clickwake.dashboard.sessions import Sessions, Visitor
from clickwake.local import process
from stream.settings import Settings
from tests.support.cluster import answers, running, until
from tests.support.read_api import KEY, Shop

AWAY = "ClickHouse does not answer"
PASSWORD = "a long way to the sea"  # noqa: S105 - of these tests


class Store:
    """ClickHouse, as far as a page asks it: `answers` by question, the empty list for any other; to those of `failing` with
    an error of its own."""

    def __init__(self, **answers: queries.Rows) -> None:
        self.answers = {getattr(queries, name): rows for name, rows in answers.items()}
        self.away, self.failing, self.code, self.asked = False, set[str](), 0, list[str]()

    async def rows(self, sql: str, **parameters: Any) -> queries.Rows:
        self.asked.append(sql)
        if self.away:
            raise OperationalError("connection refused")
        if sql in self.failing:
            raise OperationalError("exceeded", code=self.code)
        return self.answers.get(sql, [])


def page_on(store: Store, tmp_path: Path, lang: str = "en", visitor: Visitor = ANYBODY) -> Page:
    scope = {"type": "http", "path": "/", "headers": [], "query_string": b"", "state": {"visitor": visitor}}
    sessions = Sessions(Accounts(tmp_path / "none.json"), 60.0, lambda: 0.0)
    page = Page(Settings(home=tmp_path), sessions, Request(scope), "/", lang, "t")
    page.database = store  # type: ignore[assignment]  # what pages use of it
    return page


def texts(client: Client) -> list[str]:
    return [one.text for one in client.elements.values() if isinstance(one, ui.label)]


def timers(client: Client) -> dict[float, list[Callable[[], Awaitable[None]]]]:
    """What is done again, by the seconds in between."""
    found: dict[float, list[Callable[[], Awaitable[None]]]] = {}
    for one in client.elements.values():
        if isinstance(one, ui.timer) and one.callback is not None:
            found.setdefault(one.interval, []).append(one.callback)
    return found


async def test_figures_that_are_not_renewed_are_said_to_be_old_until_they_are(tmp_path: Path) -> None:
    totals = {"events": 5, "users": 2, "recommendations": 0, "alerts": 0, "letters": 0}
    store = Store(TOTALS=[totals])
    with Client(ui.page("/"), request=None) as client:
        await pages.live(page_on(store, tmp_path))
        turns = [turn for some in timers(client).values() for turn in some]
        assert "5" in texts(client) and AWAY not in texts(client) and len(turns) == 4
        store.away = True
        for turn in (*turns, *turns):
            await turn()
            assert texts(client).count(AWAY) == 1 and "connection refused" in texts(client) and "5" in texts(client)
        store.away, totals["events"] = False, 6
        await turns[0]()
        assert "6" in texts(client) and AWAY not in texts(client), "who answers one question is asked the others, too"


async def test_a_page_opened_while_the_store_is_away_has_its_figures_later(tmp_path: Path) -> None:
    store = Store(TOTALS=[{"events": 5, "users": 2, "recommendations": 0, "alerts": 0, "letters": 0}])
    store.away = True
    with Client(ui.page("/"), request=None) as client:
        await pages.live(page_on(store, tmp_path))
        assert texts(client).count(AWAY) == 1
        store.away = False
        (turn,) = timers(client)[pages.TRAFFIC_S]
        await turn()
        assert "5" in texts(client) and AWAY not in texts(client)


@pytest.mark.parametrize(("code", "said"), [(159, SLOW), (160, SLOW), (241, FAILS)])
async def test_what_takes_too_much_holds_up_nothing_else(tmp_path: Path, code: int, said: str) -> None:
    """Time or memory. It is not said to be away, and not asked again before its time."""
    totals = {"events": 5, "users": 2, "recommendations": 0, "alerts": 0, "letters": 0}
    store = Store(TOTALS=[totals], TRAFFIC=[{"at": "2026-01-01 00:00:10", "events": 3}])
    store.failing, store.code = {queries.TOTALS, queries.ACTIVE}, code
    with Client(ui.page("/"), request=None) as client:
        await pages.live(page_on(store, tmp_path))
        traffic = next(one for one in client.elements.values() if isinstance(one, ui.echart))
        assert traffic.options["series"][0]["data"] == [3]
        assert texts(client).count(said) == 1 and AWAY not in texts(client) and "5" not in texts(client)
        turns = timers(client)
        store.asked.clear()
        for turn in turns[pages.TRAFFIC_S]:
            await turn()
        assert store.asked == [queries.TRAFFIC] and texts(client).count(said) == 1
        store.failing.clear()
        for turn in turns[pages.HISTORY_S]:
            await turn()
        assert "5" in texts(client) and said not in texts(client)


@pytest.mark.parametrize(("lang", "said"), [("en", "The first 2 of 1,234."), ("zh", "共 1,234 条，仅显示前 2 条。")])
async def test_a_table_that_has_the_first_rows_only_says_so(tmp_path: Path, lang: str, said: str) -> None:
    alerts = [{"as_of_ts": "2026-01-01 00:00:00", "user_id": f"u{n}", "probability": 0.8, "horizon_days": 14,
               "reasons": "", "outcome": "pending", "of_all": 1_234} for n in range(2)]  # fmt: skip
    for of_all, shown in ((1_234, True), (2, False)):
        for row in alerts:
            row["of_all"] = of_all
        with Client(ui.page("/"), request=None) as client:
            await pages.churn(page_on(Store(ALERTS=alerts), tmp_path, lang))
            assert (said in texts(client)) is shown


async def test_rows_that_begin_alike_are_told_apart(tmp_path: Path) -> None:
    """By what a table's rows are known by when they are sorted."""
    rates = [{"model_version": "m", "horizon": horizon, "emissions": 8, "hits": 4, "hit_rate": 0.5, "ordered": 1,
              "pending": 0} for horizon in ("1h", "1d", "7d")]  # fmt: skip
    with Client(ui.page("/"), request=None) as client:
        await pages.recommendations(page_on(Store(HIT_RATE=rates), tmp_path))
        (table,) = (one for one in client.elements.values() if isinstance(one, ui.table))
        assert len({row[table.row_key] for row in table.rows}) == 3


async def test_the_newest_models_are_drawn(tmp_path: Path) -> None:
    """Over the days that they have; one that came late though it is called early among them."""
    daily = [{"day": f"2026-01-{n + 1:02}", "model_version": f"m{n}", "emissions": 9, "hit_rate": 0.5} for n in range(9)]
    daily.append(daily[8] | {"model_version": "counts"})
    with Client(ui.page("/"), request=None) as client:
        await pages.recommendations(page_on(Store(HIT_RATE_DAILY=daily), tmp_path))
        (drawn,) = (one.options for one in client.elements.values() if isinstance(one, ui.echart))
        assert [one["name"] for one in drawn["series"]] == ["m4", "m5", "m6", "m7", "counts", "m8"]
        assert drawn["xAxis"]["data"] == [f"2026-01-{n:02}" for n in range(5, 10)]


async def test_many_intervals_have_room(tmp_path: Path) -> None:
    """Each of two lines of text."""
    heights = []
    for count in (2, 40):
        results = [{"placement": "home", "offer_id": f"o{n}", "holdout": False, "users": 1, "impressions": 5, "clicks": 1,
                    "click_rate": 0.2, "click_low": 0.1, "click_high": 0.3, "orders": 0, "order_rate": 0.0, "revenue": 0.0,
                    "spent": 0.0, "text": "", "of_all": count} for n in range(count)]  # fmt: skip
        with Client(ui.page("/"), request=None) as client:
            await promotions_page.promotions(page_on(Store(OFFER_RESULTS=results), tmp_path))
            (drawn,) = (one for one in client.elements.values() if isinstance(one, ui.echart))
            heights.append(drawn.style.get("height"))
    assert heights == [None, "104rem"]


async def test_brands_are_drawn_by_how_much_is_said_of_them(tmp_path: Path) -> None:
    weekly = [{"week": week, "brand": brand, "said": said, "mean": 0.5}
              for week, brand, said in (("2026-01-12", "Clay", 2), ("2026-01-05", "Clay", 2), ("2026-01-05", "Oak", 3))]
    with Client(ui.page("/"), request=None) as client:
        await satisfaction_page.satisfaction(page_on(Store(SATISFACTION_WEEKLY=weekly), tmp_path))
        (drawn,) = (one.options for one in client.elements.values() if isinstance(one, ui.echart))
        assert [(one["name"], one["data"]) for one in drawn["series"]] == [("Clay", [0.5, 0.5]), ("Oak", [0.5, None])]


async def test_what_is_nearest_is_nearest_to_the_user_and_like_the_last_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the read API says both, under titles that say which is which."""
    shop = Shop(tmp_path / "shop")
    asked = {name: (await shop.get(path)).json()["items"]
             for name, path in (("near", "/v1/users/u1/nearest"), ("alike", "/v1/items/i2/neighbors"))}
    monkeypatch.setattr(pages, "_read_api", lambda page: httpx.AsyncClient(
        transport=httpx.ASGITransport(shop.app), base_url="http://api", auth=KEY))  # fmt: skip
    with Client(ui.page("/"), request=None) as client:
        await pages._known(page_on(Store(), tmp_path), "u1")
        _, near, alike = (one for one in client.elements.values() if isinstance(one, ui.table))
        for table, label, rows in ((near, "cosine", asked["near"]), (alike, "score", asked["alike"])):
            assert table.columns[-1]["label"] == label and len(rows) > 3
            assert [(row["item"], row["score"]) for row in table.rows] == [(one["item_id"], one["score"]) for one in rows]
        assert texts(client)[-2:] == ["Nearest to the user's own vector", "Items like the last one dealt with: i2"]
        (recommended, *_) = (one for one in client.elements.values() if isinstance(one, ui.table))
        assert recommended.rows and shop.logged() == [], "nobody was shown what is recommended"


@pytest.mark.parametrize(("tenants", "others"), [(None, ["u", "v"]), (("t", "w"), ["w"]), (("t",), [])])
async def test_a_page_says_whose_it_is_and_leads_to_the_same_of_others(
    tmp_path: Path, tenants: tuple[str, ...] | None, others: list[str]
) -> None:
    """Those of the account; of one that may open all, those with events."""
    store = Store(TENANTS=[{"tenant": one} for one in ("u", "t", "v")])
    page = page_on(store, tmp_path, visitor=Visitor("ann", "read", tenants=tenants))
    with Client(ui.page("/"), request=None) as client:
        page.frame("Live")
        assert "Tenant t" in texts(client)
        page.lead_to(await page.others())
        links = {one.text: one.props["href"] for one in client.elements.values() if isinstance(one, ui.link)}
        assert {name for name, href in links.items() if "tenant=t" not in href} == set(others)
        assert all(links[one] == f"/?lang=en&tenant={one}" for one in others)
    store.away = True
    assert await page.others() == ([] if tenants is None else others), "the page itself says who is away"


@pytest.mark.parametrize(("lang", "said"), [
    ("en", "Everything about user u7 of tenant t will be erased, everywhere. This cannot be undone."),
    ("zh", "租户 t 的用户 u7 的所有数据将从所有位置删除，且无法恢复。"),
])
async def test_who_is_to_be_forgotten_is_named(tmp_path: Path, lang: str, said: str) -> None:
    with Client(ui.page("/"), request=None) as client:
        await pages.user(page_on(Store(), tmp_path, lang), "u7")
        (question,) = (one for one in client.elements.values() if isinstance(one, ui.dialog))
        assert said in texts(client) and question.props["aria-label"] == said


async def test_whose_session_is_over_is_told_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not why an item is recommended, either."""
    page = page_on(Store(), tmp_path, visitor=Visitor("ann", "read", "gone"))
    monkeypatch.setattr(pages, "_read_api", lambda page: pytest.fail("it was asked"))
    with Client(ui.page("/"), request=None):
        told = ui.column()
        await pages._why(page, "u1", "i1", told)
        assert told.default_slot.children == []


def test_an_account_opens_the_pages_of_its_tenants_only(tmp_path: Path) -> None:
    """In the process itself, whatever an address asks for; with no tenants named it opens all."""
    settings, port = Settings(home=tmp_path), process.free_port()
    people = (accounts.new("ann", "admin", PASSWORD, ("a", "b")), accounts.new("bob", "read", PASSWORD))
    accounts.write(settings.accounts_file, {one.name: one for one in people})
    assert settings.accounts_file.read_text().count("tenants") == 1, "without, a file is as it was"
    url = f"http://127.0.0.1:{port}"
    with running(settings, "clickwake.dashboard", CLICKWAKE_DASHBOARD__PORT=str(port), CLICKWAKE_SHOP__TENANT="c") as served:
        until(lambda: answers(f"{url}/health/live"), 60, "the dashboard answers")
        opened = {"": 200, "?tenant=a": 200, "?tenant=b&lang=zh": 200, "?tenant=c": 403, "?tenant=": 403,
                  "?tenant=a&tenant=c": 403, "?tenant=c&tenant=a": 200}  # fmt: skip
        for name, wanted in (("ann", opened), ("bob", dict.fromkeys(opened, 200))):
            with httpx.Client(base_url=url, trust_env=False, headers={"accept": "text/html"}, timeout=60) as browser:
                assert browser.post("/sign-in", data={"name": name, "password": PASSWORD}).status_code == 303
                for query, status in wanted.items():
                    answer = browser.get(f"/users{query}")
                    assert answer.status_code == status, (name, query)
                    assert status == 200 or "tenant=c" not in answer.text
                shown, first = "a" if name == "ann" else "c", browser.get("/users").text
                assert f"tenant={shown}" in first, "the first of theirs where the usual one is none"
                assert ("tenant=b" in first) == (name == "ann"), "the way to their other one"
                assert browser.get("/users/u1?tenant=c").status_code == wanted["?tenant=c"]
                odd = browser.get("/users/12%2FAB%25%3F")
                assert odd.status_code == 200 and "<title>Clickwake · 12/AB%?</title>" in odd.text
                assert "/users/12%2FAB%25%3F?lang=zh" in odd.text, "the same page in another language"
        last = 'clickwake_dashboard_requests_total{endpoint="/users/{ident}",status="200"}'
        until(lambda: served.metrics().get(last) == 3, 20, "the last page is counted, which is after it was answered")
        said = served.metrics()
    told = {(endpoint, status): said[f'clickwake_dashboard_requests_total{{endpoint="{endpoint}",status="{status}"}}']
            for endpoint, status in (("/users", 200), ("/users", 403), ("/users/{ident}", 200), ("/users/{ident}", 403),
                                     ("other", 303))}  # fmt: skip
    assert told == {("/users", 200): 13, ("/users", 403): 3, ("/users/{ident}", 200): 3, ("/users/{ident}", 403): 1,
                    ("other", 303): 2}  # fmt: skip
    assert not any("u1" in name for name in said), "whom they look at is in no figure"
