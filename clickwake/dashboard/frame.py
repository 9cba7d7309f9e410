"""What every page has: its words, its tenant, who looks, and the frame around it."""

from __future__ import annotations

import asyncio
import copy
import html
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

import httpx
from clickhouse_connect.driver.exceptions import ClickHouseError
from nicegui import ui
from nicegui.events import GenericEventArguments
from starlette.requests import Request

from clickwake.dashboard.gate import IN, OUT
from clickwake.dashboard.queries import TENANTS, TOO_LONG, Database, Rows
from clickwake.dashboard.sessions import Sessions, Visitor
from clickwake.dashboard.words import Words, language
from producers.kafka import KafkaUnavailable
from stream.settings import Settings

Work = Callable[[], Awaitable[None]]
SLOW, FAILS = "ClickHouse takes too long", "ClickHouse answers with an error"
CHECK_S = 5.0  # whether the session still holds
NAV = {"/": "Live", "/segments": "Segments", "/churn": "Churn", "/recommendations": "Recommendations",
       "/promotions": "Promotions", "/satisfaction": "Satisfaction", "/models": "Models", "/dead-letters": "Dead letters",
       "/users": "Users"}  # fmt: skip
ROWS_MAX = 25  # of a table at once
ROWS_USUAL = 5  # of a picture: so many can be read at its usual height
# Colours that are readable: 4.5 : 1 for texts, in the dark too. Quasar's own classes say !important in a layer, which an
# earlier layer alone can overrule
STYLE = """<style>
body { font-family: system-ui, sans-serif; --ink: #59636c; --focus: #0b6e5f; }
body.body--dark { --ink: #a9b3bc; --focus: #4cc2ab; --q-primary: #4cc2ab !important; --q-negative: #ff8f86 !important;
  --q-positive: #6fd58a !important; }
@layer theme {
  body.body--dark :is(.bg-primary, .bg-negative, .bg-positive) { color: #10211d !important; }
  :focus-visible, .q-field__control:has(:focus-visible) {
    outline: 3px solid var(--focus) !important; outline-offset: 2px !important; }
  .q-header :focus-visible { outline-color: #fff !important; }
}
.q-page { padding-bottom: 3rem; } .q-table th { font-weight: 600; } .q-table th button { font: inherit; cursor: pointer; }
.q-table__sort-icon { cursor: default; } .q-header { background: #0b6e5f; }
.bar { display: flex; flex-wrap: wrap; align-items: center; gap: .25rem; width: 100%; }
.bar > nav { display: flex; flex-wrap: wrap; flex: 1; gap: .25rem; }
.whose details { position: relative; } .whose summary { cursor: pointer; }
.whose nav { position: absolute; z-index: 1; display: flex; flex-direction: column; width: max-content; max-width: 80vw;
  max-height: 60vh; overflow-y: auto; padding: .5rem; background: #0b6e5f; border: 1px solid #fff; }
.chart { height: 17rem; width: 100%; } .chart svg text { fill: var(--ink) !important; }
.nicegui-code pre { white-space: pre-wrap; overflow-wrap: anywhere; }
body:not(.body--dark) .nicegui-code .gi { color: #007000; }
@media (max-width: 48rem) {
  .bar > nav { order: 1; flex: 0 0 100%; flex-wrap: nowrap; overflow-x: auto; padding: .3rem; }
  .bar > nav a, .q-table th { white-space: nowrap; } .q-table td { min-width: 6rem; }
}
</style>"""
# A header that sorts is made anew by that, and would lose the focus: who goes by keys would begin at the top of the page
KEEP_FOCUS = """<script>(() => {
  let place = null;
  const buttons = (table) => document.getElementById(table)?.querySelectorAll("thead button") ?? [];
  addEventListener("focusin", ({target}) => {
    const table = target.closest("thead")?.closest("[id]").id;
    place = table ? [table, [...buttons(table)].indexOf(target)] : null;
  });
  addEventListener("pointerdown", () => { place = null; });
  new MutationObserver(() => {
    if (place && document.activeElement === document.body) buttons(place[0])[place[1]]?.focus({preventScroll: true});
  }).observe(document, {childList: true, subtree: true});
})();</script>"""
# what a pointer can do, keys can: sorting is a button, and what chooses a row has the row's name
HEADER = """<q-th :props="props" scope="col" :aria-sort="!COL.__thClass.includes(' sorted') ? 'none'
    : COL.__thClass.includes(' sort-desc') ? 'descending' : 'ascending'"
    ><button type="button">{{ COL.label }}</button></q-th>"""
CHOICES = """<q-tr :props="props"><q-th auto-width><span class="sr-only">CALLED</span></q-th>""" + HEADER.replace(
    "<q-th", '<q-th v-for="col in props.cols" :key="col.name"', 1).replace("COL", "col") + "</q-tr>"
# A table that tells what is chosen is drawn anew: who chose by keys goes on from there, not from the top of the page
STAY = """requestAnimationFrame(() => document.activeElement === document.body
  && [...document.querySelectorAll('[role=checkbox]')].find(one => one.ariaLabel === CALLED)?.focus())"""
UNSORTED = {"sortBy": None, "descending": False, "page": 1}  # what QTable makes of nothing
ROW = "row"  # a row's number, which is its key: of rows with the same key Vue leaves some behind when it sorts them
CHOICE = """<q-checkbox v-model="props.selected" :aria-label="String(props.row[NAMES])" />"""


class Table(ui.table):
    """One that is not drawn anew when the browser says what it was told: QTable says its pagination as soon as it is there,
    NiceGUI 3.18 answers with the whole table, and who was in it by then, with the focus, was thrown out."""

    @property
    def pagination(self) -> dict[str, Any]:
        said: dict[str, Any] = self.props["pagination"]
        return said

    @pagination.setter
    def pagination(self, value: dict[str, Any]) -> None:
        if value != self.pagination:
            self.props["pagination"] = value


class Page:
    """One request's page: its words, its tenant, and the frame around its content."""

    def __init__(self, settings: Settings, sessions: Sessions, request: Request, path: str, lang: str, tenant: str) -> None:
        self.settings, self.path, self.tenant = settings, path, tenant
        self.sessions = sessions
        self.visitor: Visitor = request.state.visitor
        self.t = Words(language(lang, request.headers.get("accept-language", "")))
        self.database = Database(settings.clickhouse)

    def href(self, path: str, lang: str | None = None, tenant: str | None = None) -> str:
        whose = quote(self.tenant if tenant is None else tenant, safe="")
        return f"{path}?lang={lang or self.t.language}&tenant={whose}"

    def frame(self, title: str) -> None:
        """Around what the page is about, in the visitor's language: the components' own words too, which NiceGUI knows by
        route, not by request."""
        t, client = self.t, ui.context.client
        client.page = copy.copy(client.page)
        client.page.language = "zh-CN" if t.language == "zh" else "en-US"
        ui.page_title(f"Clickwake · {title}")
        ui.add_head_html(STYLE + KEEP_FOCUS)
        ui.colors(primary="#0b6e5f", positive="#1b7a35")
        ui.dark_mode(value=None)  # as the system has it
        with ui.header(elevated=False, add_scroll_padding=True), ui.element("div").classes("bar"):
            ui.link("Clickwake", self.href("/")).classes("text-white text-lg no-underline mr-4")
            self._whose = ui.element("div").classes("whose text-white break-all px-2")
            with self._whose:
                ui.label(self.called)
            with ui.element("nav").props(f'aria-label="{t("Pages")}"'):
                for path, name in NAV.items():
                    link = ui.link(t(name), self.href(path)).classes("text-white px-2 py-1 no-underline")
                    if path == self.path:
                        link.classes("border-b-2 border-white").props('aria-current="page"')
            ui.space().classes("md:hidden")
            other, name = ("en", "English") if t.language == "zh" else ("zh", "中文")
            ui.link(name, self.href(self.path, other)).classes("text-white px-2").props(f"lang={other}")
            ui.button(icon="contrast").props(f'flat color=white aria-label="{t("Dark or light")}"').on(
                "click", js_handler="() => setDark(!Quasar.Dark.isActive)")  # the browser knows which of both it shows
            if self.visitor.session:
                who = f"{t('Sign out')} ({html.escape(self.visitor.name)})"
                ui.html(f'<form method="post" action="{OUT}"><button class="text-white underline">{who}</button></form>',
                        sanitize=False)  # fmt: skip
                ui.timer(CHECK_S, self.holds)
        ui.skip_link(t("Skip to content"), target=client.content)
        self.heading(title, 1)

    @property
    def called(self) -> str:
        """Whose page it is."""
        return f"{self.t('Tenant')} {self.tenant}" if self.tenant else self.t("no tenant")

    async def others(self) -> list[str]:
        """Other tenants whose pages the visitor may open; of an account that may open all, those with most events, none
        while nobody knows them."""
        if (known := self.visitor.tenants) is None:
            try:
                known = tuple(row["tenant"] for row in await self.database.rows(TENANTS))
            except ClickHouseError:
                known = ()
        return [one for one in known if one != self.tenant]

    def lead_to(self, others: Sequence[str]) -> None:
        """To the same page of other tenants, under the name of this one."""
        if not others:
            return
        self._whose.clear()
        with self._whose, ui.element("details"):
            ui.html(html.escape(self.called), tag="summary", sanitize=False)
            with ui.element("nav").props(f'aria-label="{self.t("Other tenants")}"'):
                for one in others:
                    ui.link(one, self.href(self.path, tenant=one)).classes("text-white px-2 py-1 no-underline")

    def heading(self, text: str, level: int = 2) -> None:
        ui.label(text).classes("text-2xl" if level == 1 else "text-lg mt-4").props(f'role="heading" aria-level="{level}"')

    def holds(self) -> bool:
        """Whether the page may still show and do things; one whose session is over goes to where one signs in."""
        if self.sessions.holds(self.visitor):
            return True
        ui.navigate.to(IN)
        return False

    @property
    def may_change(self) -> bool:
        """Whether the visitor may do more than look."""
        return self.visitor.role == "admin"

    async def guarded(self, work: Work) -> None:
        """Fill a part of the page, or say who does not answer."""
        if (away := await _away(work)) is not None:
            self.problem(*away)

    async def kept_fresh(self, works: Mapping[Work, float], said_in: ui.column) -> None:
        """Do each of `works` now, and again and again after so many seconds, whatever becomes of the others; one that got no
        answer as soon as another gets one, but not one that got an error: asking again would be as much work, for the same.
        While somebody does not answer as they should, `said_in` says who, once; it is empty again as soon as they do."""
        away: dict[Work, tuple[str, str]] = {}
        said: set[str] = set()

        def say() -> None:
            nonlocal said
            who = dict(away.values())
            if who.keys() == said:  # or a screen reader would hear of it at each turn
                return
            said = set(who)
            said_in.clear()
            said_in.set_visibility(bool(who))
            with said_in:
                for what, why in who.items():
                    self.problem(what, why)

        async def turn(*some: Work) -> None:
            if not self.holds():
                return
            answers = dict(zip(some, await asyncio.gather(*map(_away, some)), strict=True))
            for work, why in answers.items():
                away.pop(work, None)
                if why is not None:
                    away[work] = why
            say()
            again = [work for work, (who, _) in away.items() if who not in (SLOW, FAILS)]
            if again and None in answers.values():
                await turn(*again)

        await turn(*works)
        for work, every_s in works.items():
            ui.timer(every_s, partial(turn, work), immediate=False)

    def problem(self, what: str, why: str) -> None:
        with ui.card().classes("w-full").props('role="alert"'):
            ui.label(self.t(what)).classes("text-negative font-bold")
            ui.label(why).classes("break-words").props("lang=en")

    def code(self, text: str, language: str) -> ui.code:
        """Lines to read or to copy."""
        made = ui.code(text, language=language).classes("w-full").props("translate=no")
        made.copy_button.props(f'aria-label="{self.t("Copy")}"')
        return made

    def table(self, rows: Rows, columns: dict[str, str], title: str = "") -> ui.table | None:
        """Rows, numbered, under translated names; says so when there are none, and when they are the first of more
        (`of_all`)."""
        if title:
            self.heading(self.t(title))
        if not rows:
            ui.label(self.t("Nothing here yet."))
            return None
        if (of_all := rows[0].get("of_all", 0)) > len(rows):
            ui.label(self.t(f"The first {len(rows):,} of {of_all:,}."))
        made = [{"name": name, "label": self.t(label), "field": name, "sortable": True, "align": "left"}
                for name, label in columns.items()]  # fmt: skip
        pages = len(rows) > ROWS_MAX
        table = Table(columns=made, rows=numbered(rows), row_key=ROW,
                      pagination=UNSORTED | {"rowsPerPage": ROWS_MAX if pages else 0}).classes("w-full")  # fmt: skip
        table.props(f'flat bordered wrap-cells :rows-per-page-options="[{ROWS_MAX}]"{"" if pages else " hide-pagination"}')
        table.add_slot("header-cell", HEADER.replace("COL", "props.col"))
        return table


def numbered(rows: Rows) -> Rows:
    """As a table wants them.

    >>> numbered([{"views": 3}, {"views": 3}])
    [{'views': 3, 'row': 0}, {'views': 3, 'row': 1}]
    """
    return [row | {ROW: at} for at, row in enumerate(rows)]


async def _away(work: Work) -> tuple[str, str] | None:
    """Do it; who did not answer as they should, and why, where somebody did not."""
    try:
        await work()
    except ClickHouseError as error:
        code = getattr(error, "code", None)  # the server's own
        return "ClickHouse does not answer" if code is None else SLOW if code in TOO_LONG else FAILS, str(error)
    except KafkaUnavailable as error:
        return "Kafka does not answer", str(error)
    except httpx.HTTPError as error:
        return "The read API does not answer", repr(error)
    return None


def picture(options: dict[str, Any], rows: int = 0) -> ui.echart:
    """As SVG, whose texts take the page's colours; higher where it has many rows, of two lines each."""
    made = ui.echart(options, renderer="svg").classes("chart")
    return made.style(f"height: {4 + 2.5 * rows:g}rem") if rows > ROWS_USUAL else made


def draw(chart: ui.echart, options: dict[str, Any]) -> None:
    """Show something else in a picture."""
    chart.options.clear()
    chart.options.update(options)
    chart.update()


def link_users(page: Page, table: ui.table, field: str) -> None:
    """A cell that leads to the user's page."""
    where = page.href("/users/USER")
    table.add_slot(f"body-cell-{field}", f"""<q-td :props="props"><a class="text-primary underline"
        :href="'{where}'.replace('USER', encodeURIComponent(props.value))">{{{{ props.value }}}}</a></q-td>""")  # fmt: skip


def choose_one(page: Page, table: ui.table, names: str, then: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
    """A row can be chosen, by a box that is called what the row's field `names` says; `then` gets the row."""
    async def chosen(event: GenericEventArguments) -> None:
        row = event.args["rows"][0]
        await then(row)
        ui.run_javascript(STAY.replace("CALLED", json.dumps(str(row[names]))))

    table.props("selection=single").on("selection", chosen)
    table.add_slot("header", CHOICES.replace("CALLED", html.escape(page.t("choice"))))
    table.add_slot("body-selection", CHOICE.replace("NAMES", repr(names)))
