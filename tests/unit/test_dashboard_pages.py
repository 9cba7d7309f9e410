"""Pages of the dashboard without a browser: what they say while a store is away, of long tables, and to whom they open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from clickhouse_connect.driver.exceptions import OperationalError
from nicegui import Client, ui
from starlette.requests import Request

from clickwake.dashboard import accounts, pages, queries
from clickwake.dashboard.accounts import Accounts
from clickwake.dashboard.frame import Page
from clickwake.dashboard.gate import ANYBODY
from clickwake.dashboard.sessions import Sessions
from clickwake.local import process
from stream.settings import Settings
from tests.support.cluster import answers, running, until
from tests.support.read_api import KEY, Shop

AWAY = "ClickHouse does not answer"
PASSWORD = "a long way to the sea"  # noqa: S105 - of these tests


class Store:
    """ClickHouse, as far as a page asks it: `answers` by question, the empty list for any other."""

    def __init__(self, **answers: queries.Rows) -> None:
        self.answers = {getattr(queries, name): rows for name, rows in answers.items()}
        self.away = False

    async def rows(self, sql: str, **parameters: Any) -> queries.Rows:
        if self.away:
            raise OperationalError("connection refused")
        return self.answers.get(sql, [])


def page_on(store: Store, tmp_path: Path, lang: str = "en") -> Page:
    scope = {"type": "http", "path": "/", "headers": [], "query_string": b"", "state": {"visitor": ANYBODY}}
    sessions = Sessions(Accounts(tmp_path / "none.json"), 60.0, lambda: 0.0)
    page = Page(Settings(home=tmp_path), sessions, Request(scope), "/", lang, "t")
    page.database = store  # type: ignore[assignment]  # what pages use of it
    return page


def texts(client: Client) -> list[str]:
    return [one.text for one in client.elements.values() if isinstance(one, ui.label)]


async def test_figures_that_are_not_renewed_are_said_to_be_old_until_they_are(tmp_path: Path) -> None:
    totals = {"events": 5, "users": 2, "recommendations": 0, "alerts": 0, "letters": 0}
    store = Store(TOTALS=[totals])
    with Client(ui.page("/"), request=None) as client:
        await pages.live(page_on(store, tmp_path))
        (timer,) = (one for one in client.elements.values() if isinstance(one, ui.timer))
        assert "5" in texts(client) and AWAY not in texts(client) and timer.callback is not None
        store.away = True
        for _ in range(2):
            await timer.callback()
            assert texts(client).count(AWAY) == 1 and "connection refused" in texts(client) and "5" in texts(client)
        store.away, totals["events"] = False, 6
        await timer.callback()
        assert "6" in texts(client) and AWAY not in texts(client)


async def test_a_page_opened_while_the_store_is_away_has_its_figures_later(tmp_path: Path) -> None:
    store = Store(TOTALS=[{"events": 5, "users": 2, "recommendations": 0, "alerts": 0, "letters": 0}])
    store.away = True
    with Client(ui.page("/"), request=None) as client:
        await pages.live(page_on(store, tmp_path))
        assert texts(client).count(AWAY) == 1
        (timer,) = (one for one in client.elements.values() if isinstance(one, ui.timer))
        store.away = False
        assert timer.callback is not None
        await timer.callback()
        assert "5" in texts(client) and AWAY not in texts(client)


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
                shown = "a" if name == "ann" else "c"
                assert f"tenant={shown}" in browser.get("/users").text, "the first of theirs where the usual one is none"
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
