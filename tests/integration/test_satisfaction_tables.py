"""What people think, in tables and views on a real engine: hand-computed, the same after a replay, and erased."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

from schemas import topics
from stream.erasure.rows import Rows
from stream.settings import Settings
from tests.support.database import Database, on


def opinion(ident: str, day: int, item: str, satisfaction: float | None, source: str = "review", user: str = "u",
            **more: Any) -> dict[str, Any]:  # fmt: skip
    stars = None if satisfaction is None else 1 + 4 * satisfaction
    return {"opinion_id": ident, "tenant": "shop", "user_id": user, "event_id": f"m-{ident}", "source": source,
            "lane": "live", "said_at": f"2026-01-{day:02}T12:00:00Z", "item_id": item, "brand": "Clay", "language": "en",
            "satisfaction": satisfaction, "stars": stars, "stars_read": None, "p_satisfied": None, "aspects": [],
            "telling": f"said {ident}", "model_version": "", **more}  # fmt: skip


def about(aspect: str, p: float | None) -> dict[str, Any]:
    return {"aspect": aspect, "words": ["w"], "sentence": "s", "p_satisfied": p}


OPINIONS = [
    opinion("a", 5, "mug", 1.0, aspects=[about("quality", 0.75), about("price", 0.25)]),
    opinion("b", 5, "mug", 0.5, aspects=[about("quality", 0.25)]),
    opinion("c", 6, "mug", 0.0, user="v"),
    opinion("d", 6, "cup", 0.5, source="survey"),
    opinion("e", 6, "mug", 0.0, source="ticket"),
    opinion("f", 6, "mug", None, language="und"),
]
ALERT = {"alert_id": "x", "tenant": "shop", "about": "item", "name": "mug", "state": "raised", "number": 1,
         "changed_at": "2026-01-06T12:00:00Z", "as_of_ts": "2026-01-06T13:00:00Z", "before": 0.75, "after": 0.0,
         "opinions_before": 2, "opinions_after": 1, "opinions_per_false_alarm": 1000,
         "evidence": [{"opinion_id": ident, "sentence": f"said {ident}", "satisfaction": 0.0,
                       "said_at": "2026-01-06T12:00:00Z"} for ident in ("c", "b")]}  # fmt: skip


def test_satisfaction_by_item_brand_aspect_and_day(database: Database) -> None:
    for again in range(2):  # the second time as a replay would: the same ids at other offsets
        database.store([*on(topics.OPINIONS, OPINIONS, 100 * again), *on(topics.SATISFACTION_ALERTS, [ALERT], 100 * again)])
        assert database.rows("SELECT day, item_id, opinions, satisfaction, tickets FROM satisfaction_daily "
                             "ORDER BY day, item_id") == [
            (date(2026, 1, 5), "mug", 2, 0.75, 0), (date(2026, 1, 6), "cup", 1, 0.5, 0),
            (date(2026, 1, 6), "mug", 1, 0.0, 1)]  # fmt: skip
        # the mean of all four that count is 0.5, so ten average opinions add 5
        assert database.rows("SELECT item_id, opinions, satisfaction, round(shrunk, 4), round(unhappy, 4), tickets "
                             "FROM satisfaction_by_item ORDER BY item_id") == [
            ("cup", 1, 0.5, 0.5, 0.0, 0), ("mug", 3, 0.5, 0.5, 0.3333, 1)]  # fmt: skip
        assert database.rows("SELECT * EXCEPT tenant FROM satisfaction_by_brand") == [("Clay", 4, 0.5, 0.25, 2, 1)]
        assert database.rows("SELECT aspect, sentences, p_satisfied, unhappy FROM satisfaction_by_aspect "
                             "ORDER BY aspect") == [
            ("price", 1, 0.25, 1), ("quality", 2, 0.5, 1)]
        assert database.rows("SELECT name, state, reason, changed_at, quotes FROM satisfaction_alerts_served") == [
            ("mug", "raised", "opinions", datetime(2026, 1, 6, 12, tzinfo=UTC), ["said c", "said b"])]


def test_who_is_erased_is_quoted_no_more(database: Database) -> None:
    database.store([*on(topics.OPINIONS, OPINIONS), *on(topics.SATISFACTION_ALERTS, [ALERT])])
    rows = Rows(Settings(clickhouse=database.settings), "shop", datetime.now(UTC) + timedelta(days=1), suppress=False)
    done = {one.place: one.records for one in rows.delete(["v"])}
    assert done["ClickHouse opinions"] == 1 and rows.left(["v"]) == 0
    assert database.rows("SELECT quotes FROM satisfaction_alerts_served") == [(["said b"],)]
    assert database.rows("SELECT count() FROM opinions FINAL") == [(5,)]


def test_what_came_of_telling_the_shops_own_people(database: Database) -> None:
    """Two items are told of; one is better after four days, the other after forty. A brand was held back by a cap."""
    def said(ident: str, name: str, day: str, **more: Any) -> dict[str, Any]:
        return ALERT | {"alert_id": ident, "name": name, "as_of_ts": f"2026-{day}T12:00:00Z", "evidence": []} | more

    def told(ident: str, thing: str, day: str, status: str = "sent") -> dict[str, Any]:
        return {"delivery_id": f"d-{ident}", "tenant": "shop", "user_id": "", "delivery": "quality", "channel": "team",
                "about_kind": "satisfaction-alert", "about_id": ident, "status": status, "at": f"2026-{day}T12:00:00Z",
                "thing": thing}  # fmt: skip

    alerts = [said("x1", "mug", "01-06"), said("x2", "mug", "01-10", state="cleared"), said("y1", "cup", "01-06"),
              said("y2", "cup", "01-08", state="cleared", reason="tickets"), said("y3", "cup", "02-15", state="cleared"),
              said("z1", "Clay", "01-06", about="brand"), said("z2", "Clay", "01-07", about="brand", state="cleared"),
              said("v1", "Clay", "01-06", about="brand", tenant="another")]  # fmt: skip
    for again in range(2):
        database.store([*on(topics.SATISFACTION_ALERTS, alerts, 100 * again), *on(topics.DELIVERIES, [
            told("x1", "item/mug", "01-05", "deferred"), told("x1", "item/mug", "01-06"), told("y1", "item/cup", "01-06"),
            told("z1", "brand/Clay", "01-06", "capped")], 100 * again)])  # fmt: skip
        assert database.rows("SELECT * FROM staff_delivery_outcomes ORDER BY status") == [
            ("shop", "quality", "capped", 1, 1, 1.0, 1.0, 1), ("shop", "quality", "sent", 2, 1, 0.5, 4.0, 2)]
