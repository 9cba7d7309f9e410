"""Dead letters by cause; who may change things tries the known fix, sees the difference, and sends again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from nicegui import ui

from clickwake import dead_letters as letters
from clickwake.dashboard import queries
from clickwake.dashboard.frame import Page, choose_one, numbered
from clickwake.dashboard.queries import Rows
from producers.kafka import KafkaUnavailable, NotAcknowledged
from producers.repair import Mended

REFRESH_S = 3.0
SHOWN_MAX = 5  # differences of one cause
COLUMNS = {"called": "kind", "where": "where", "why": "why", "letters": "letters", "newest": "newest (UTC)",
           "example": "example"}  # fmt: skip
log = structlog.get_logger()


async def dead_letters(page: Page) -> None:
    await _of_tenant(page)
    if page.visitor.tenants is None and page.tenant and (rows := await _causes(page, "")):
        page.table(rows, COLUMNS, "Of no tenant: what came without a key")


async def _of_tenant(page: Page) -> None:
    rows = await _causes(page, page.tenant)
    found = page.table(rows, COLUMNS, "What could not be processed, by cause")
    if found is None:
        return
    if not page.may_change:
        with ui.row().classes("items-center"):
            ui.label(page.t("Mend and send again with"))
            page.code("clickwake dead-letters list\nclickwake dead-letters repair --cause CAUSE", "bash")
        return
    below, after = ui.column().classes("w-full"), ui.column().classes("w-full")
    with below:
        ui.label(page.t("Choose a cause to try its fix: nothing is sent by that."))

    async def attempt(row: dict[str, Any]) -> None:
        if not (page.may_change and page.holds()):
            return
        below.clear()
        with below:
            await page.guarded(lambda: _try(page, row, sent))

    async def refresh() -> None:
        if (now := numbered(await _causes(page, page.tenant))) != found.rows:
            found.rows, found.selected = now, []

    async def sent() -> None:
        """What was sent leaves the table once the sink has stored it."""
        below.clear()
        after.clear()
        with after:
            away = ui.column().classes("w-full")
            await page.kept_fresh({refresh: REFRESH_S}, away)

    choose_one(page, found, "where", attempt)


async def _causes(page: Page, tenant: str) -> Rows:
    rows = await page.database.rows(queries.LETTERS, tenant=tenant)
    return [row | {"called": page.t(row["kind"])} for row in rows]


async def _try(page: Page, row: dict[str, Any], then: Callable[[], Awaitable[None]]) -> None:
    t = page.t
    named = await page.database.rows(queries.LETTERS_OF, tenant=page.tenant, kind=row["kind"], where=row["where"])
    wanted = {(page.tenant, one["dead_letter_id"]) for one in named}
    some = await asyncio.to_thread(letters.read, page.settings, lambda one: (one.tenant, one.dead_letter_id) in wanted)
    again = await asyncio.to_thread(letters.sent_again, page.settings, some)
    left = [one for one in some if one.dead_letter_id not in (again or ())]
    if named and (of_all := named[0]["of_all"]) > len(named):
        ui.label(t(f"The newest {len(named):,} of {of_all:,} are tried."))
    if len(left) < len(named):
        ui.label(t("What is older than Kafka keeps dead letters is known, but cannot be sent again.")).props("data-gone")
    mended = await asyncio.to_thread(letters.tried, page.settings, left)
    fit = sum(one.event is not None for one in mended)
    ui.label(f"{fit} / {len(mended)} {t('would be taken once mended')}").classes("text-lg").props('data-fit')
    for one in mended[:SHOWN_MAX]:
        said = " ".join(map(str, one.changes)) or t("unchanged")
        with ui.card().classes("w-full"):
            ui.label(f"{one.letter.dead_letter_id} · {said}").classes("font-bold break-all").props("translate=no")
            page.code(one.diff or t("unchanged"), "diff")
            for message in one.messages:
                ui.label(f"{message.path} {message.message}").classes("text-negative").props("translate=no")
    if fit:
        button = ui.button(f"{t('Send again')} ({fit})")
        button.on_click(lambda: _send(page, mended, button, then))


async def _send(page: Page, mended: list[Mended], button: ui.button, then: Callable[[], Awaitable[None]]) -> None:
    if not (page.may_change and page.holds()):
        return
    button.disable()
    try:
        sent = await asyncio.to_thread(letters.send_again, page.settings, mended)
    except (KafkaUnavailable, NotAcknowledged) as error:
        ui.notify(f"{page.t('Nothing was sent')}: {error}", type="negative", timeout=0, close_button=page.t("Close"))
        button.enable()
        return
    log.info("dead letters sent again", by=page.visitor.name, tenant=page.tenant, letters=sent)
    ui.notify(f"{page.t('Sent again')}: {sent}", type="positive")
    await then()
