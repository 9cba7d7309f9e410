"""All four kinds of opinions in two languages on a real broker, each read by a model of its language: what is on the topic,
in ClickHouse, in the levels of item and brand; and tickets that become many."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from clickwake import topics as topic_admin
from schemas import topics
from schemas.catalog import Item
from schemas.opinions import Opinion, SatisfactionAlert
from stream.adapters.database import clickhouse
from stream.adapters.health.lag import Lag
from stream.core.opinions.satisfaction import Level, Subject
from stream.settings import Models, Settings
from tests.support.cluster import Sender, read_all, running, until
from tests.support.reviews import planted
from training.opinions import satisfaction

NOW = datetime.now(UTC) - timedelta(minutes=5)
REVIEW, SURVEY, MENTION, TICKET = "Product Reviewed", "Survey Answered", "Brand Mentioned", "Support Ticket Created"
LOVED = "I love the soft blue dress, perfect size and great color"
AWFUL = "The shirt is awful, cheap and itchy. I returned the dress, disappointed"
PLEASED, FURIOUS = "质量很好，满意，推荐", "物流太差，失望，退货"
PAST_DAYS, FLOOD = 40, 12


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of small models, published as `--publish` does. Both of n-grams: fine-tuning and exporting an encoder takes its time,
    and stars read from texts are tests/unit/test_satisfaction.py's."""
    found = str(tmp_path_factory.mktemp("registry"))
    settings = Settings(models=Models(registry=found))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(satisfaction, "encoder_folder", lambda settings, language: None)
        for language in ("en", "zh"):
            train, validation = (planted(400, seed=seed, language=language) for seed in range(2))
            satisfaction.publish(settings, satisfaction.learn(train, validation, settings, seed=0, say=lambda _: None))
    return found


def event(ident: str, name: str, at: datetime = NOW, **properties: Any) -> dict[str, Any]:
    return {"messageId": ident, "type": "track", "event": name, "userId": f"u-{ident}", "tenant": "t", "lane": "live",
            "timestamp": at.isoformat(), "properties": properties}  # fmt: skip


EVENTS = [
    event("loved", REVIEW, product_id="mug", review_body=LOVED),
    event("starred", REVIEW, product_id="mug", review_title="二星", review_body=FURIOUS, rating=2),
    event("asked", SURVEY, product_id="mug", comment=PLEASED),
    event("scored", SURVEY, product_id="cup", answer=LOVED, score=9),
    event("tweeted", MENTION, brand="Clay", text=AWFUL),
    event("posted", MENTION, brand="Clay", text=FURIOUS),
    event("complained", TICKET, NOW - timedelta(days=PAST_DAYS), product_id="mug", subject="Help", description=AWFUL),
]
USUAL = [event(f"past-{day}", TICKET, NOW - timedelta(days=day), product_id="mug", message=(AWFUL, FURIOUS)[day % 2])
         for day in range(1, PAST_DAYS)]  # fmt: skip
MANY = [event(f"many-{at}", TICKET, NOW, product_id="mug", message=(AWFUL, FURIOUS)[at % 2]) for at in range(FLOOD)]


@pytest.mark.timeout(240)
def test_what_people_say_is_read_counted_and_alarmed_about(settings: Settings, registry: str) -> None:
    settings = settings.model_copy(update={"models": Models(registry=registry)})
    topic_admin.create(settings)
    items = [(f"t/{ident}".encode(), msgspec.json.encode(Item(item_id=ident, tenant="t", brand="Clay", title=ident)))
             for ident in ("mug", "cup")]  # fmt: skip
    with Sender(settings, topics.ITEMS) as catalog, Sender(settings) as events:
        catalog.send(items)
        with running(settings, "workers.insights"), running(settings, "workers.sink"):
            events.send(EVENTS + USUAL)
            folded(settings, len(EVENTS) + len(USUAL))
            assert read_all(settings, topics.SATISFACTION_ALERTS) == [], "one ticket a day is usual"
            events.send(MANY)
            folded(settings, len(EVENTS) + len(USUAL) + FLOOD)
            for table, count in (("opinions", len(EVENTS + USUAL + MANY)), ("satisfaction_alerts", 2)):
                until(lambda table=table, count=count: stored(settings, table) == count, 60, f"{count} {table} are stored")
    said = {one.event_id: one for one in opinions(settings)}
    assert_read(said)
    assert_stored(settings, said)
    assert_levels(settings, said)
    assert_alarmed(settings)


def assert_read(said: dict[str, Opinion]) -> None:
    kinds = {one["messageId"]: (said[one["messageId"]].source, said[one["messageId"]].language) for one in EVENTS}
    assert kinds == {"loved": ("review", "en"), "starred": ("review", "zh"), "asked": ("survey", "zh"),
                     "scored": ("survey", "en"), "tweeted": ("mention", "en"), "posted": ("mention", "zh"),
                     "complained": ("ticket", "en")}  # fmt: skip
    assert {one.brand for one in said.values()} == {"Clay"}, "of the event, else of the catalog"
    assert {(one.language, one.model_version.split("-")[1]) for one in said.values()} == {("en", "en"), ("zh", "zh")}
    loved, starred, asked, scored, tweeted, posted = (said[one["messageId"]] for one in EVENTS[:6])
    assert (starred.stars, starred.satisfaction) == (2.0, 0.25) and scored.stars == pytest.approx(4.6)
    assert scored.satisfaction == pytest.approx(0.9) and scored.p_satisfied != scored.satisfaction, "given stars count"
    for one, pleased in ((loved, True), (asked, True), (tweeted, False), (posted, False)):
        assert one.stars is None and one.satisfaction is not None and one.satisfaction == one.p_satisfied
        assert one.satisfaction > 0.7 if pleased else one.satisfaction < 0.3, one
    assert starred.p_satisfied is not None and starred.p_satisfied < 0.3
    aspects = {ident: {about.aspect for about in one.aspects} for ident, one in said.items()}
    assert aspects["loved"] == {"comfort", "size", "looks"} and aspects["posted"] == {"delivery", "service"}
    assert all(about.p_satisfied is not None for one in said.values() for about in one.aspects)


def assert_stored(settings: Settings, said: dict[str, Opinion]) -> None:
    found = rows(settings, "SELECT event_id, source, language, stars, stars_read, p_satisfied, satisfaction, aspects, "
                           "item_id, brand, model_version FROM opinions FINAL")  # fmt: skip
    assert {row[0]: row[1:] for row in found} == {
        ident: (one.source, one.language, one.stars, one.stars_read, one.p_satisfied, one.satisfaction,
                [about.aspect for about in one.aspects], one.item_id, one.brand, one.model_version)
        for ident, one in said.items()}  # fmt: skip


def assert_levels(settings: Settings, said: dict[str, Opinion]) -> None:
    """Of the topic that ranking reads, and of the views."""
    counted = [one for one in said.values() if one.source != "ticket"]
    states = {one.key: one.value for one in read_all(settings, topics.SATISFACTION)}
    for key, some in ((b"t/item/mug", [one for one in counted if one.item_id == "mug"]),
                      (b"t/item/cup", [one for one in counted if one.item_id == "cup"]), (b"t/brand/Clay", counted)):
        level = msgspec.msgpack.decode(states[key], type=Level)
        assert (level.n, level.total) == (len(some), pytest.approx(sum(one.satisfaction or 0.0 for one in some))), key
    tickets = msgspec.msgpack.decode(states[b"t/item/mug"], type=Subject).tickets
    assert sum(tickets.days.values()) == FLOOD and tickets.changed, "what came before the rise counts no more"
    mean = sum(one.satisfaction or 0.0 for one in counted) / len(counted)
    (brand,) = rows(settings, "SELECT opinions, satisfaction, tickets FROM satisfaction_by_brand")
    assert brand == (len(counted), pytest.approx(mean), len(said) - len(counted))


def assert_alarmed(settings: Settings) -> None:
    records = read_all(settings, topics.SATISFACTION_ALERTS)
    alerts = [msgspec.json.decode(one.value, type=SatisfactionAlert) for one in records]
    today = NOW.replace(hour=0, minute=0, second=0, microsecond=0)
    assert {(one.about, one.name, one.state, one.reason, one.changed_at) for one in alerts} == {
        ("item", "mug", "raised", "tickets", today), ("brand", "Clay", "raised", "tickets", today)}
    for one in alerts:
        assert one.before == pytest.approx(1.0) and 5 <= one.after <= FLOOD
        assert len(one.evidence) == 5 and all(quote.said_at >= today for quote in one.evidence)
        assert all(quote.sentence and quote.sentence in AWFUL + FURIOUS for quote in one.evidence)
    served = rows(settings, "SELECT name, state, reason, length(quotes) FROM satisfaction_alerts_served ORDER BY name")
    assert served == [("Clay", "raised", "tickets", 5), ("mug", "raised", "tickets", 5)]


def opinions(settings: Settings) -> list[Opinion]:
    return [msgspec.json.decode(one.value, type=Opinion) for one in read_all(settings, topics.OPINIONS)]


def folded(settings: Settings, count: int) -> None:
    """Wait until so many opinions are read and folded."""
    with Lag(settings) as seen:
        group = f"{settings.kafka.topic_prefix}.satisfaction"

        def all_folded() -> bool:
            ends = seen.ends(topics.OPINIONS)
            return sum(ends.values()) == count and seen.of(group, ends) == 0

        until(all_folded, 60, f"{count} opinions are folded")


def stored(settings: Settings, table: str) -> int:
    return len(rows(settings, f"SELECT * FROM {table} FINAL"))  # noqa: S608  # a name of this file


def rows(settings: Settings, sql: str) -> list[tuple[Any, ...]]:
    """Nothing before the sink has made the tables."""
    try:
        with closing(clickhouse.open_client(settings.clickhouse)) as client:
            return [tuple(row) for row in client.query(sql).result_rows]
    except clickhouse.ClickHouseError as error:
        if "UNKNOWN" in str(error):
            return []
        raise
