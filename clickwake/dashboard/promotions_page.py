"""Promotions: whether they help, each with its interval, and what they have spent against their budgets."""

from __future__ import annotations

import asyncio
from typing import Any

from clickwake.dashboard import charts, queries
from clickwake.dashboard.frame import Page, picture
from clickwake.dashboard.queries import Rows
from clickwake.offers import named


async def promotions(page: Page) -> None:
    effects, results, spend = await asyncio.gather(*(
        page.database.rows(sql, tenant=page.tenant)
        for sql in (queries.OFFER_EFFECT, queries.OFFER_RESULTS, queries.OFFER_SPEND)))  # fmt: skip
    _effect(page, effects)
    _results(page, results)
    _spend(page, spend)


def _effect(page: Page, effects: Rows) -> None:
    t = page.t
    for row in effects:
        row["says"] = t("helps" if row["effect_low"] > 0 else "harms" if row["effect_high"] < 0 else "not known yet")
    if effects:
        picture(charts.intervals(t("More orders a user than held out, with interval"), [
            (row["placement"], row["effect_low"], row["effect"], row["effect_high"]) for row in effects]), len(effects))
    page.table(effects, {"placement": "placement", "offered": "users offered", "offered_rate": "of these ordered",
                         "held_out": "users held out", "held_out_rate": "of the held-out ordered", "effect": "effect",
                         "effect_low": "at least", "effect_high": "at most", "says": "so it"}, "Do offers help")  # fmt: skip


def _results(page: Page, results: Rows) -> None:
    t = page.t
    for row in results:
        row["offer_id"] = named(row["offer_id"], row["text"])
    shown = [row for row in results if row["impressions"]]
    if shown:
        picture(charts.intervals(t("Clicks an impression, with its interval"), [
            (f"{row['placement']}: {row['offer_id'] or t('nothing')}" + (f" ({t('hold-out')})" if row["holdout"] else ""),
             row["click_low"], row["click_rate"], row["click_high"]) for row in shown]), len(shown))  # fmt: skip
    for row in results:
        row["holdout"] = t("hold-out") if row["holdout"] else ""
    page.table(results, {"placement": "placement", "offer_id": "offer", "holdout": "hold-out", "users": "users",
                         "impressions": "impressions", "click_rate": "click rate", "click_low": "at least",
                         "click_high": "at most", "orders": "orders", "order_rate": "order rate", "revenue": "revenue",
                         "spent": "spent"}, "Offers beside each other")  # fmt: skip


def _spend(page: Page, spend: Rows) -> None:
    t = page.t
    days = sorted({row["day"] for row in spend})
    by_offer: dict[str, dict[str, Any]] = {}
    for row in spend:
        by_offer.setdefault(row["offer_id"], {})[row["day"]] = row
    if days:
        series = {offer: [found.get(day, {}).get("spent") for day in days] for offer, found in by_offer.items()}
        picture(charts.over(t("Spent a day"), days, series, bars=True, stacked=True))
    newest = [found[max(found)] for found in by_offer.values()]
    for row in newest:
        row["used"] = _used(row)
    page.table(newest, {"offer_id": "offer", "day": "day", "spent": "spent that day", "budget_money_per_day": "budget a day",
                        "spent_so_far": "spent so far", "budget_money": "budget in all",
                        "impressions_so_far": "impressions so far", "budget_impressions": "impressions budgeted",
                        "used": "of the budget used"},
               "Spent against budgets")  # fmt: skip


def _used(row: dict[str, Any]) -> str:
    """The share of the budget that is gone, of the one nearest to its end.

    >>> _used({"spent_so_far": 5.0, "budget_money": 10.0, "impressions_so_far": 9, "budget_impressions": 10})
    '90%'
    """
    pairs = (("spent_so_far", "budget_money"), ("impressions_so_far", "budget_impressions"))
    shares = [row[done] / row[budget] for done, budget in pairs if row[budget]]
    return f"{max(shares):.0%}" if shares else "–"
