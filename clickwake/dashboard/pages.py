"""The pages. Each asks its questions, and says which store does not answer instead of showing nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import httpx
from clickhouse_connect.driver.exceptions import ClickHouseError
from nicegui import ui

from clickwake import erase
from clickwake.dashboard import charts, queries
from clickwake.dashboard.queries import Database, Rows
from clickwake.dashboard.words import Words
from clickwake.storefront.app import NoKey, plain_key
from producers.kafka import KafkaUnavailable, NotAcknowledged
from stream.settings import Settings

REFRESH_S = 3.0
NAV = {"/": "Live", "/segments": "Segments", "/churn": "Churn", "/recommendations": "Recommendations",
       "/dead-letters": "Dead letters", "/users": "Users"}  # fmt: skip
STYLE = """<style>
body { font-family: system-ui, sans-serif; } .q-table th { font-weight: 600; } .q-page { padding-bottom: 3rem; }
:focus-visible { outline: 3px solid #0b8a76; outline-offset: 2px; } .chart { height: 17rem; width: 100%; }
</style>"""


class Page:
    """One request's page: its words, its tenant, and the frame around its content."""

    def __init__(self, settings: Settings, path: str, lang: str, tenant: str) -> None:
        self.settings, self.path, self.tenant = settings, path, tenant
        self.t = Words(lang)
        self.database = Database(settings.clickhouse)

    def href(self, path: str, lang: str | None = None) -> str:
        return f"{path}?lang={lang or self.t.language}&tenant={quote(self.tenant, safe='')}"

    def frame(self) -> None:
        t = self.t
        ui.add_head_html(STYLE)
        ui.colors(primary="#0b6e5f")
        dark = ui.dark_mode(value=None)
        with ui.header(elevated=False).classes("items-center"), ui.row().classes("items-center w-full gap-1"):
            ui.link("Clickwake", self.href("/")).classes("text-white text-lg no-underline mr-4")
            for path, name in NAV.items():
                link = ui.link(t(name), self.href(path)).classes("text-white px-2 py-1 no-underline")
                if path == self.path:
                    link.classes("border-b-2 border-white").props('aria-current="page"')
            ui.space()
            other = "en" if t.language == "zh" else "zh"
            ui.link("English" if other == "en" else "中文", self.href(self.path, other)).classes("text-white")
            ui.button(icon="contrast", on_click=lambda: dark.set_value(not dark.value)).props(
                f'flat color=white aria-label="{t("Dark or light")}"')

    async def guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        """Fill a part of the page, or say who does not answer."""
        try:
            await work()
        except ClickHouseError as error:
            self.problem("ClickHouse does not answer", str(error))
        except httpx.HTTPError as error:
            self.problem("The read API does not answer", repr(error))

    def problem(self, what: str, why: str) -> None:
        with ui.card().classes("w-full").props('role="alert"'):
            ui.label(self.t(what)).classes("text-negative font-bold")
            ui.label(why)

    def table(self, rows: Rows, columns: dict[str, str], title: str = "", key: str = "") -> ui.table | None:
        """Rows under translated names; says so when there are none."""
        if title:
            ui.label(self.t(title)).classes("text-lg mt-4").props('role="heading" aria-level="2"')
        if not rows:
            ui.label(self.t("Nothing here yet."))
            return None
        made = [{"name": name, "label": self.t(label), "field": name, "sortable": True, "align": "left"}
                for name, label in columns.items()]  # fmt: skip
        return ui.table(columns=made, rows=rows, row_key=key or next(iter(columns)),
                         pagination={"rowsPerPage": 25}).classes("w-full").props("flat bordered wrap-cells")  # fmt: skip


async def live(page: Page) -> None:
    t = page.t
    tiles: dict[str, ui.label] = {}
    with ui.row().classes("w-full gap-4"):
        for name, text in (("events", "events"), ("users", "users"), ("recommendations", "recommendations"),
                           ("alerts", "alerts"), ("letters", "dead letters")):  # fmt: skip
            with ui.card().classes("min-w-[9rem]"):
                tiles[name] = ui.label("–").classes("text-2xl").props(f'data-tile="{name}"')
                ui.label(t(text))
    traffic = ui.echart(charts.over(t("Events per 10 seconds, as the broker took them"), [], {}, bars=True)).classes("chart")
    with ui.row().classes("w-full no-wrap max-md:flex-wrap"):
        steps = ui.echart(charts.funnel(t("Funnel, the last 30 days with events"), {})).classes("chart")
        active = ui.echart(charts.over(t("Active users"), [], {}, bars=True)).classes("chart")

    async def refresh() -> None:
        totals, events, funnel, days = await asyncio.gather(*(
            page.database.rows(sql, tenant=page.tenant)
            for sql in (queries.TOTALS, queries.TRAFFIC, queries.FUNNEL, queries.ACTIVE)))  # fmt: skip
        for name, label in tiles.items():
            label.set_text(f"{totals[0][name]:,}")
        _draw(traffic, charts.over(t("Events per 10 seconds, as the broker took them"), [row["at"][11:19] for row in events],
                                   {t("events"): [row["events"] for row in events]}, bars=True))  # fmt: skip
        names = {"viewed": "viewed", "added": "added to cart", "checkout": "checkout", "ordered": "ordered"}
        _draw(steps, charts.funnel(t("Funnel, the last 30 days with events"),
                                   {t(text): funnel[0][name] for name, text in names.items() if funnel}))  # fmt: skip
        days.reverse()
        _draw(active, charts.over(t("Active users"), [row["day"][5:10] for row in days], {
            t("new"): [row["new"] for row in days], t("returning"): [row["returning"] for row in days],
        }, bars=True, stacked=True))  # fmt: skip

    await page.guarded(refresh)
    ui.timer(REFRESH_S, refresh, immediate=False)


def _draw(chart: ui.echart, options: dict[str, Any]) -> None:
    chart.options.clear()
    chart.options.update(options)
    chart.update()


async def segments(page: Page) -> None:
    t = page.t
    rows = await page.database.rows(queries.SEGMENTS, tenant=page.tenant)
    if not rows:
        ui.label(f"{t('No segments yet: write rules into')} {page.settings.segments_file.absolute()}")
        return
    columns = {"segment": "segment", "members": "members", "entered_1d": "entered, 1 day", "left_1d": "left, 1 day",
               "changed_at": "changed"}  # fmt: skip
    found = page.table(rows, columns, key="segment")
    assert found is not None
    found.props("selection=single").on("selection", lambda event: show(event.args["rows"][0]["segment"]))
    at = ui.input(t("as of (UTC)"), value=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}").classes("w-64")
    below = ui.column().classes("w-full")
    with below:
        ui.label(t("Choose a segment to see who is in it."))

    async def show(segment: str) -> None:
        below.clear()
        with below:
            try:
                when = datetime.fromisoformat(at.value).replace(tzinfo=UTC)
            except ValueError as error:
                page.problem("as of (UTC)", str(error))
                return
            members = await page.database.rows(queries.MEMBERS, tenant=page.tenant, segment=segment, at=when)
            ui.label(f"{t('Members of')} {segment}").classes("text-lg")
            made = page.table(members, {"user_id": "user", "entered_at": "entered", "left_at": "left", "values": "because"})
            if made is not None:
                _link_users(page, made, "user_id")


def _link_users(page: Page, table: ui.table, field: str) -> None:
    """A cell that leads to the user's page."""
    where = page.href("/users/USER")
    table.add_slot(f"body-cell-{field}", f"""<q-td :props="props"><a class="text-primary underline"
        :href="'{where}'.replace('USER', encodeURIComponent(props.value))">{{{{ props.value }}}}</a></q-td>""")  # fmt: skip


async def churn(page: Page) -> None:
    precision, alerts = await asyncio.gather(
        page.database.rows(queries.PRECISION, tenant=page.tenant), page.database.rows(queries.ALERTS, tenant=page.tenant))
    page.table(precision, {"model_version": "model", "horizon_days": "days", "raised": "raised", "judged": "judged",
                           "correct": "right", "precision": "precision", "said": "as said", "pending": "pending"},
               "How often alerts were right")  # fmt: skip
    made = page.table(alerts, {"as_of_ts": "at", "user_id": "user", "probability": "probability", "horizon_days": "days",
                               "reasons": "reasons", "outcome": "outcome"}, "Alerts raised, newest first")  # fmt: skip
    if made is not None:
        _link_users(page, made, "user_id")


async def recommendations(page: Page) -> None:
    t = page.t
    asked = (queries.HIT_RATE, queries.HIT_RATE_DAILY, queries.SCENARIOS)
    rates, daily, scenarios = await asyncio.gather(*(page.database.rows(sql, tenant=page.tenant) for sql in asked))
    if daily:
        days = sorted({row["day"] for row in daily})
        by_model: dict[str, dict[str, float]] = {}
        for row in daily:
            by_model.setdefault(row["model_version"], {})[row["day"]] = row["hit_rate"]
        series = {model: [found.get(day) for day in days] for model, found in sorted(by_model.items())}
        ui.echart(charts.over(t("Hit rate within a day, over time"), days, series)).classes("chart")
    page.table(rates, {"model_version": "model", "horizon": "within", "emissions": "emissions", "hits": "hits",
                       "hit_rate": "hit rate", "ordered": "ordered", "pending": "pending"},
               "Hit rate of recommendations, by model")  # fmt: skip
    page.table(scenarios, {"scenario": "scenario", "answers": "answers", "shown": "shown", "clicked": "clicked",
                           "added": "added", "ordered": "ordered"}, "Answers of the read API, by scenario")  # fmt: skip


async def dead_letters(page: Page) -> None:
    rows = await page.database.rows(queries.LETTERS, tenant=page.tenant)
    page.table(rows, {"kind": "kind", "where": "where", "why": "why", "letters": "letters", "newest": "newest",
                      "example": "example"}, "What could not be processed, by cause")  # fmt: skip
    with ui.row().classes("items-center"):
        ui.label(page.t("Mend and send again with"))
        ui.code("clickwake dead-letters list\nclickwake dead-letters repair --cause 1").classes("w-96")


async def users(page: Page) -> None:
    t = page.t
    wanted = ui.input(t("Find a user by id")).classes("w-80").props("autofocus")

    def go() -> None:
        if wanted.value:
            ui.navigate.to(page.href(f"/users/{quote(wanted.value, safe='')}"))

    wanted.on("keydown.enter", go)
    ui.button(t("Look"), on_click=go)


async def user(page: Page, ident: str) -> None:
    t = page.t
    ui.label(ident).classes("text-2xl").props('role="heading" aria-level="1"')
    await page.guarded(lambda: _known(page, ident))
    timeline = await page.database.rows(queries.TIMELINE, tenant=page.tenant, user=ident)
    was = await page.database.rows(queries.USER_SEGMENTS, tenant=page.tenant, user=ident)
    page.table(was, {"segment": "segment", "entered_at": "entered", "left_at": "left"}, "Segments")
    page.table(timeline, {"timestamp": "at", "event": "event", "product_id": "item", "revenue": "revenue"}, "Timeline")
    with ui.dialog() as sure, ui.card():
        ui.label(t("Everything about this user will be erased, everywhere. This cannot be undone."))
        with ui.row():
            ui.button(t("Erase"), color="negative", on_click=lambda: _forget(page, ident, sure))
            ui.button(t("Cancel"), on_click=sure.close).props("flat")
    ui.button(t("Forget this user…"), on_click=sure.open).props("outline color=negative").classes("mt-6")


async def _known(page: Page, ident: str) -> None:
    """What the read API says of the user."""
    t, own = page.t, page.settings.api
    try:
        key = plain_key(own.read_keys, page.tenant, "read")
    except NoKey as error:
        page.problem("The read API does not answer", str(error))
        return
    async with httpx.AsyncClient(base_url=f"http://{own.host}:{own.port}", auth=(key, ""), trust_env=False) as api:
        found, answer = await asyncio.gather(
            api.get(f"/v1/users/{quote(ident, safe='')}"),
            api.get(f"/v1/recommendations/{quote(ident, safe='')}", params={"fields": "title"}))
    if found.status_code != 200:
        ui.label(t("Nothing is known of this user.") if found.status_code == 404 else found.text)
        return
    known = found.json()
    facts = [("Known since", known["first_seen"][:19]), ("last seen", known["last_seen"][:19]), ("events", known["events"]),
             ("orders", known["orders"]), ("spent", known["revenue"]), ("active days", known["active_days"]),
             ("in now", ", ".join(known["segments"]) or "–")]  # fmt: skip
    if churning := known["churn"]:
        facts += [("silent for", round(churning["silent_days"], 1)), ("gone with probability", churning["p_no_return"])]
    with ui.row().classes("w-full no-wrap max-md:flex-wrap"):
        with ui.card().classes("min-w-[18rem]"):
            for name, value in facts:
                with ui.row().classes("w-full justify-between"):
                    ui.label(t(name))
                    ui.label(str(value))
        if churning:
            shown = [one for one in churning["curve"] if one[0] <= 180]
            ui.echart(charts.curve(t("Chance of still being away, by days of silence"), shown,
                                   min(180.0, churning["silent_days"]))).classes("chart")  # fmt: skip
    items = answer.json()["items"] if answer.status_code == 200 else []
    rows = [
        {"item": one["item_id"], "title": (one["item"] or {}).get("title") or "", "score": one["score"],
         "source": one["source"], "why": ", ".join(reason["item_id"] for reason in one["reasons"])} for one in items
    ]  # fmt: skip
    page.table(rows, {"item": "item", "title": "title", "score": "score", "source": "source", "why": "because of"},
               "What is recommended now")  # fmt: skip


async def _forget(page: Page, ident: str, dialog: ui.dialog) -> None:
    dialog.close()
    try:
        await asyncio.to_thread(erase.request, page.settings, page.tenant, [ident], suppress=False, lift=False)
    except (KafkaUnavailable, NotAcknowledged) as error:
        ui.notify(f"{page.t('The request was not taken')}: {error}", type="negative", timeout=0, close_button=True)
        return
    ui.notify(page.t("The request was taken: the erasure worker carries it out."), type="positive")


PAGES = {"/": live, "/segments": segments, "/churn": churn, "/recommendations": recommendations,
         "/dead-letters": dead_letters, "/users": users}  # fmt: skip


def routes(settings: Settings) -> None:
    """Tell NiceGUI of all pages."""
    def add(path: str, fill: Callable[[Page], Awaitable[None]]) -> None:
        @ui.page(path, title=f"Clickwake · {NAV[path]}", response_timeout=30)
        async def shown(lang: str = "en", tenant: str = settings.shop.tenant) -> None:
            page = Page(settings, path, lang, tenant)
            page.frame()
            await page.guarded(lambda: fill(page))

    for path, fill in PAGES.items():
        add(path, fill)

    @ui.page("/users/{ident}", title="Clickwake · user", response_timeout=30)
    async def one_user(ident: str, lang: str = "en", tenant: str = settings.shop.tenant) -> None:
        page = Page(settings, f"/users/{ident}", lang, tenant)
        page.frame()
        await page.guarded(lambda: user(page, ident))
