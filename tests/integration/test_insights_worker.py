"""The insights worker on a real broker, killed in the middle: opinions once each, states and alerts as without it."""

from __future__ import annotations

import os
import signal
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from clickwake import topics as topic_admin
from schemas import topics
from schemas.opinions import Opinion, SatisfactionAlert
from stream.adapters.database import clickhouse
from stream.adapters.health.lag import Lag
from stream.core.opinions.satisfaction import Place, Subject, fold
from stream.core.statistics.changes import Policy
from stream.settings import Settings
from tests.support.cluster import Sender, of_short_sessions, read_all, running, until

AT = datetime.now(UTC) - timedelta(days=20)
GOOD, BAD = "Lovely mug, keeps tea warm.", "The handle broke on the first day, terrible quality."


def review(at: int, rating: int, **more: Any) -> dict[str, Any]:
    return {"messageId": f"m{at}", "type": "track", "event": "Product Reviewed", "userId": f"u{at}", "tenant": "t",
            "timestamp": (AT + timedelta(hours=at)).isoformat(), "lane": "live",
            "properties": {"product_id": f"mug-{at % 3}", "brand": "Clay", "rating": rating,
                           "review_body": BAD if rating < 3 else GOOD}, **more}  # fmt: skip


REVIEWS = [review(at, 1 if at >= 60 else 5) for at in range(90)]
REFUSED = [review(at, 1, context={"consent": {"analytics": False}}) for at in range(200, 205)]


def truth(settings: Settings) -> dict[bytes, Subject]:
    """States by a plain recomputation from the opinions topic, the first record of each opinion counting."""
    found: dict[bytes, Subject] = {}
    for record in sorted(read_all(settings, topics.OPINIONS), key=lambda one: (one.partition, one.offset)):
        one = msgspec.json.decode(record.value, type=Opinion)
        assert one.satisfaction is not None
        place = Place(record.partition, record.offset, one.opinion_id, one.satisfaction)
        for key in (f"t/item/{one.item_id}".encode(), b"t/brand/Clay"):
            fold(found.setdefault(key, Subject()), place, round(one.said_at.timestamp() * 1000), Policy())
    return found


def states(settings: Settings) -> dict[bytes, Subject]:
    return {one.key: msgspec.msgpack.decode(one.value, type=Subject) for one in read_all(settings, topics.SATISFACTION)}


@pytest.mark.timeout(180)
def test_killed_in_the_middle_it_says_everything_once(settings: Settings) -> None:
    settings = of_short_sessions(settings)
    topic_admin.create(settings)
    settings.home.mkdir(parents=True, exist_ok=True)
    with Sender(settings) as events:
        events.send(REVIEWS[:60])
        with running(settings, "workers.insights") as worker:
            until(lambda: "stars alone count" in worker.log(), 60, "it says that there is no model, and goes on")
            until(lambda: len(read_all(settings, topics.OPINIONS)) >= 60, 60, "the first opinions are there")
            events.send(REFUSED + REVIEWS[60:75])
            until(lambda: len(read_all(settings, topics.OPINIONS)) > 60, 60, "it is in the middle")
            os.kill(worker.process.pid, signal.SIGKILL)
            worker.process.wait()
            worker.stopped = True
            events.send(REVIEWS[75:])
            with running(settings, "workers.insights") as second, running(settings, "workers.sink"):
                until(lambda: len(_ids(settings)) == 90, 90, "every opinion is there")
                until(lambda: _behind(settings) == 0, 90, "all are folded")
                until(lambda: _stored(settings) == [(90, 1)], 90, "the tables say so")
                known = second.metrics()
                assert known.get('clickwake_opinions_total{outcome="folded"}', 0) > 0
    assert not _ids(settings) & {f"m{at}" for at in range(200, 205)}, "who refuses analytics is not heard"
    assert states(settings) == truth(settings)
    said = read_all(settings, topics.SATISFACTION_ALERTS)
    alerts = [msgspec.json.decode(one.value, type=SatisfactionAlert) for one in said]
    (brand,) = {one.alert_id: one for one in alerts if one.about == "brand"}.values()
    assert (brand.name, brand.state, brand.before, brand.after) == ("Clay", "raised", 1.0, 0.0)
    bad = {round(datetime.fromisoformat(one["timestamp"]).timestamp() * 1000) for one in REVIEWS[60:]}
    assert round(brand.changed_at.timestamp() * 1000) in bad, "users' partitions are read in any order"
    assert {one.sentence for one in brand.evidence} == {BAD}


def _ids(settings: Settings) -> set[str]:
    return {msgspec.json.decode(one.value, type=Opinion).event_id for one in read_all(settings, topics.OPINIONS)}


def _behind(settings: Settings) -> int:
    with Lag(settings) as seen:
        return seen.of(f"{settings.kafka.topic_prefix}.satisfaction", seen.ends(topics.OPINIONS))


def _stored(settings: Settings) -> list[tuple[Any, ...]] | None:
    sql = ("SELECT (SELECT count() FROM opinions FINAL), (SELECT count() FROM satisfaction_alerts_served "
           "WHERE about = 'brand' AND length(quotes) > 0)")  # fmt: skip
    try:
        with closing(clickhouse.open_client(settings.clickhouse)) as client:
            return [tuple(row) for row in client.query(sql).result_rows]
    except clickhouse.ClickHouseError as error:
        if "UNKNOWN" in str(error):  # the sink has not made the tables yet
            return None
        raise
