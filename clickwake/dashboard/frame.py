"""What every page has: its words, its tenant, who looks, and the frame around it."""

from __future__ import annotations

import html
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import httpx
from clickhouse_connect.driver.exceptions import ClickHouseError
from nicegui import ui

from clickwake.dashboard.gate import IN, OUT
from clickwake.dashboard.queries import Database, Rows
from clickwake.dashboard.sessions import Sessions, Visitor
from clickwake.dashboard.words import Words
from producers.kafka import KafkaUnavailable
from stream.settings import Settings

CHECK_S = 5.0  # whether the session still holds
NAV = {"/": "Live", "/segments": "Segments", "/churn": "Churn", "/recommendations": "Recommendations",
       "/promotions": "Promotions", "/satisfaction": "Satisfaction", "/models": "Models", "/dead-letters": "Dead letters",
       "/users": "Users"}  # fmt: skip
STYLE = """<style>
body { font-family: system-ui, sans-serif; } .q-table th { font-weight: 600; } .q-page { padding-bottom: 3rem; }
:focus-visible { outline: 3px solid #0b8a76; outline-offset: 2px; } .chart { height: 17rem; width: 100%; }
</style>"""


class Page:
    """One request's page: its words, its tenant, and the frame around its content."""

    def __init__(self, settings: Settings, sessions: Sessions, visitor: Visitor, path: str, lang: str, tenant: str) -> None:
        self.settings, self.path, self.tenant = settings, path, tenant
        self.sessions, self.visitor = sessions, visitor
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
            if self.visitor.session:
                who = f"{t('Sign out')} ({html.escape(self.visitor.name)})"
                ui.html(f'<form method="post" action="{OUT}"><button class="text-white underline">{who}</button></form>',
                        sanitize=False)  # fmt: skip
                ui.timer(CHECK_S, self.holds)

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

    async def guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        """Fill a part of the page, or say who does not answer."""
        try:
            await work()
        except ClickHouseError as error:
            self.problem("ClickHouse does not answer", str(error))
        except KafkaUnavailable as error:
            self.problem("Kafka does not answer", str(error))
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
