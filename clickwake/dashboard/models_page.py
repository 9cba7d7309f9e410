"""Model versions: what each was learned from, what it served, and how far today's events are from those it learned from.

The drift is `stream.core.statistics.drift`'s, as `clickwake models watch` judges by: on each day what would have been said
then.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from nicegui import ui

from clickwake.dashboard import charts, queries
from clickwake.dashboard.frame import Page, picture
from clickwake.dashboard.queries import Database
from schemas.release import Manifest
from stream.adapters.models import model_store
from stream.core.statistics.drift import PSI_MAX, WINDOW_DAYS_MAX, WINDOW_DAYS_MIN, Inputs, drift
from stream.core.user.state import DAY_MS

DAYS_MAX = 28  # in the picture
EVENTS_MAX = 200_000  # compared; of more, those of a part of the users
EVENTS_MIN = 100  # in a window, or nothing is said
FEATURES = {"event": "Which events come", "gap": "Time between two events of a user"}
METRICS = (("ndcg", "clickwake_all_ndcg_at_10"), ("recall_new", "clickwake_new_recall_at_20"))  # column, in the manifest


class Drifted(NamedTuple):
    """Days, and of each feature the PSI on each of them."""

    days: list[str]
    psi: dict[str, list[float]]


async def models(page: Page) -> None:
    t = page.t
    served, manifests = await asyncio.gather(
        page.database.rows(queries.MODELS_SERVED, tenant=page.tenant),
        asyncio.to_thread(model_store.versions, page.settings.registry))  # fmt: skip
    known = {one.model_version: one for one in manifests}
    current = next((known[row["model_version"]] for row in served if row["model_version"] in known), None)
    if current is None:
        ui.label(t("No released model has served anything yet."))
    else:
        await _drift(page, current)
    by_version = {row["model_version"]: row for row in served}
    rows = [_row(one, by_version.get(one.model_version), one is current) for one in manifests]
    for row in rows:
        row["state"] = t(row["state"])
    page.table(rows, {"model_version": "model", "state": "state", "data_to": "learned until (UTC)",
                      "ndcg": "NDCG@10, held out", "recall_new": "recall@20 of new items", "emissions": "emissions",
                      "last": "served last (UTC)", "parent": "parent"}, "Model versions")  # fmt: skip


def _row(one: Manifest, served: dict[str, Any] | None, current: bool) -> dict[str, Any]:
    figures = {name: one.metrics.get(metric) for name, metric in METRICS}
    return {
        "model_version": one.model_version, "state": "in use" if current else "served before" if served else "not served",
        "data_to": f"{one.data_to:%Y-%m-%d %H:%M}", "parent": one.parent or "–",
        "emissions": served and served["emissions"], "last": served and served["last"], **figures,
    }  # fmt: skip


async def _drift(page: Page, current: Manifest) -> None:
    t = page.t
    found = await drifted(page.database, page.tenant, int(current.data_to.timestamp() * 1000))
    title = f"{t('Events now against those that the model learned from')}: {current.model_version}"
    page.heading(title)
    if not found.days:
        ui.label(t("Less than a day of events since it learned, or too few: nothing can be said yet."))
        return
    limits = {t("another population"): PSI_MAX}
    with ui.row().classes("w-full no-wrap max-md:flex-wrap"):
        for feature, values in found.psi.items():
            with ui.column().classes("w-full gap-0"):
                picture(charts.against(t(FEATURES[feature]), found.days, {t("PSI"): values}, limits))
                word = "within its limit" if values[-1] <= PSI_MAX else "beyond its limit: train again"
                ui.label(f"{t('PSI')} {values[-1]:.3f}: {t(word)}").props(f'data-drift="{feature}"')


async def drifted(database: Database, tenant: str, learned_until_ms: int) -> Drifted:
    """Of each of the newest days since a model learned."""
    ((newest_ms,),) = await database.columns(queries.NEWEST, 1, tenant=tenant) or ((0,),)
    longest_ms = round(WINDOW_DAYS_MAX * DAY_MS)
    if newest_ms - learned_until_ms < WINDOW_DAYS_MIN * DAY_MS:
        return Drifted([], {})
    users, names, times = await database.columns(
        queries.DRIFT, 2 * EVENTS_MAX, tenant=tenant, most=EVENTS_MAX, until=newest_ms,
        **{"from": learned_until_ms - longest_ms})  # fmt: skip
    return await asyncio.to_thread(_by_day, np.array(users, dtype=object), np.array(names, dtype=object),
                                   np.array(times, dtype=np.int64), learned_until_ms, newest_ms)  # fmt: skip


def _by_day(users: Any, names: Any, times: Any, learned_until_ms: int, newest_ms: int) -> Drifted:
    """Arrays (E,) of events by user and time."""
    def between(from_ms: int, until_ms: int) -> Inputs:
        some = (times > from_ms) & (times <= until_ms)
        return Inputs(users[some].astype(str), names[some].astype(str), times[some])

    found = Drifted([], {feature: [] for feature in FEATURES})
    for ago in reversed(range(DAYS_MAX)):
        end_ms = newest_ms - ago * DAY_MS
        window_ms = min(round(WINDOW_DAYS_MAX * DAY_MS), end_ms - learned_until_ms)
        if window_ms < WINDOW_DAYS_MIN * DAY_MS:
            continue
        reference, seen = between(learned_until_ms - window_ms, learned_until_ms), between(end_ms - window_ms, end_ms)
        if min(len(reference.names), len(seen.names)) < EVENTS_MIN:
            continue
        found.days.append(f"{datetime.fromtimestamp(end_ms / 1000, UTC):%m-%d}")
        for feature, value in drift(reference, seen).items():
            found.psi[feature].append(round(value, 4))
    return found if found.days else Drifted([], {})
