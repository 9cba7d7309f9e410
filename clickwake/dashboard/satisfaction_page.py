"""Satisfaction: which item or brand fell, in the words of those who said so; then brands over time, items and brands."""

from __future__ import annotations

import asyncio
from collections import Counter

from nicegui import ui

from clickwake.dashboard import charts, queries
from clickwake.dashboard.frame import Page, picture
from clickwake.dashboard.queries import Rows

BRANDS_MAX = 6  # in the picture: as many as it has colours
LOW = 0.5


async def satisfaction(page: Page) -> None:
    alerts, weekly, items, brands = await asyncio.gather(*(
        page.database.rows(sql, tenant=page.tenant, most=BRANDS_MAX)
        for sql in (queries.SATISFACTION_ALERTS, queries.SATISFACTION_WEEKLY, queries.SATISFACTION_ITEMS,
                    queries.SATISFACTION_BRANDS)))  # fmt: skip
    _alerts(page, alerts)
    _over_time(page, weekly)
    page.table(items, {"item_id": "item", "title": "title", "opinions": "opinions", "satisfaction": "satisfaction",
                       "shrunk": "if few opinions count little", "unhappy": "unhappy", "tickets": "tickets"},
               "Items, the least satisfying first")  # fmt: skip
    page.table(brands, {"brand": "brand", "items": "items", "opinions": "opinions", "satisfaction": "satisfaction",
                        "unhappy": "unhappy", "tickets": "tickets"}, "Brands, the least satisfying first")  # fmt: skip


def _alerts(page: Page, alerts: Rows) -> None:
    t = page.t
    page.heading(t("What fell or rose, newest first"))
    if not alerts:
        ui.label(t("Nothing here yet."))
    for row in alerts:
        fell = row["state"] == "raised"
        with ui.card().classes("w-full").props(f'data-alert="{"fell" if fell else "rose"}"'):
            if row["reason"] == "tickets":
                word, of = (t("has more tickets a day") if fell else t("has fewer tickets a day again")), t("tickets")
            else:
                word, of = (t("fell") if fell else t("rose again")), t("opinions")
            said = f"{t(row['about'])} {row['title'] or row['name']} {word}: {row['before']:.2f} → {row['after']:.2f}"
            ui.label(said).classes("font-bold " + ("text-negative" if fell else "text-positive"))
            ui.label(f"{t('since')} {row['changed_at']} UTC · {row['opinions_after']} {of}")
            for quote in filter(None, row["quotes"].split("\n")):
                ui.label(f"“{quote}”").classes("italic")


def _over_time(page: Page, weekly: Rows) -> None:
    if not weekly:
        return
    said = Counter[str]()
    for row in weekly:
        said[row["brand"]] += row["said"]
    weeks = sorted({row["week"] for row in weekly})
    found = {(row["brand"], row["week"]): row["mean"] for row in weekly}
    series = {brand: [found.get((brand, week)) for week in weeks] for brand, _ in said.most_common()}
    title = page.t("Satisfaction of the brands spoken of most, by week")
    picture(charts.against(title, weeks, series, {page.t("half"): LOW}))
