"""Workers told to end in the middle of the flow: nothing is said a second time, and what they have said is what their
groups have passed, so that nothing is read again; but for deliveries, which end within a batch: what is read again of it is
known from their log. Personalize and the sink have such a test beside their others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from clickwake import topics as topic_admin
from schemas import topics
from schemas.catalog import UNENCODED, Item, ItemVector
from schemas.events import key
from schemas.opinions import Opinion
from schemas.outputs import DeliveryRecord
from schemas.topics import Topic
from stream.adapters.health.lag import Lag
from stream.settings import Settings
from tests.support import bundles
from tests.support.cluster import ENDS_S, Sender, read_all, running, until
from tests.support.fakes import alert, event

RUNS, AT_ONCE, SENT_MAX, SAID_EACH = 3, 10, 5_000, 60
DELIVERIES = "channels: {files: {type: csv, folder: HERE}}\ndeliveries: [{name: save them, channel: files, about: churn}]\n"


class Case(NamedTuple):
    """A worker; what it reads, as which group, and how the n-th record of it is made; what it says of each record, and the
    id of that (None: it is not about one)."""

    worker: str
    reads: Topic
    group: str
    made: Callable[[int], tuple[bytes, bytes]]
    says: Topic
    ident: Callable[[bytes], str | None]


def review(number: int) -> tuple[bytes, bytes]:
    at_ms = round((datetime.now(UTC) - timedelta(days=20)).timestamp() * 1_000) + number
    made = event(user=f"u{number}", item=f"mug-{number % 3}", id=f"m{number}", ts_ms=at_ms, name="Product Reviewed")
    made["properties"] |= {"rating": 1 + number % 5, "review_body": f"It is the {number}th mug, and it keeps tea warm."}
    return key("t", f"u{number}"), msgspec.json.encode(made)


def item(number: int) -> tuple[bytes, bytes]:
    made = Item(item_id=f"i{number}", tenant="t", title=f"Mug number {number}, of clay")
    return f"t/{made.item_id}".encode(), msgspec.json.encode(made)


def item_of(value: bytes) -> str | None:
    made = msgspec.msgpack.decode(value, type=ItemVector)
    return None if made.space == UNENCODED else made.item.item_id


def cases(settings: Settings) -> list[Case]:
    prefix = settings.kafka.topic_prefix
    (space,) = (path.name for path in (Path(settings.registry) / "text").iterdir())
    return [
        Case("insights", topics.EVENTS, f"{prefix}.insights", review, topics.OPINIONS,
             lambda value: msgspec.json.decode(value, type=Opinion).event_id),
        Case("delivery", topics.CHURN_ALERTS, f"{prefix}.delivery", lambda number: alert(f"u{number}"), topics.DELIVERIES,
             lambda value: msgspec.json.decode(value, type=DeliveryRecord).about_id),
        Case("catalog", topics.ITEMS, f"{prefix}-catalog-{space}", item, topics.ITEM_VECTORS, item_of),
    ]  # fmt: skip


@contextmanager
def flowing(settings: Settings, case: Case) -> Iterator[None]:
    """Records come all the time."""
    over = threading.Event()

    def flow() -> None:
        with Sender(settings, case.reads) as sender:
            for first in range(0, SENT_MAX, AT_ONCE):
                sender.send(map(case.made, range(first, first + AT_ONCE)))
                if over.wait(0.05):  # the client's pace
                    return

    client = threading.Thread(target=flow)
    client.start()
    try:
        yield
    finally:
        over.set()
        client.join()


def said(settings: Settings, case: Case) -> list[str]:
    found = (case.ident(record.value) for record in read_all(settings, case.says))
    return [ident for ident in found if ident is not None]


def passed(settings: Settings, case: Case) -> int:
    """Records that the group has committed."""
    with Lag(settings) as seen:
        ends = seen.ends(case.reads)
        return sum(ends.values()) - seen.of(case.group, ends)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("worker", ["insights", "delivery", "catalog"])
def test_what_was_said_is_what_was_passed(worker: str, settings: Settings, registry: Path, tmp_path: Path) -> None:
    settings = bundles.with_registry(settings, registry)
    topic_admin.create(settings)
    (case,) = (one for one in cases(settings) if one.worker == worker)
    home = tmp_path / worker
    home.mkdir()
    (home / "deliveries.yml").write_text(DELIVERIES.replace("HERE", str(home / "out")))
    with flowing(settings, case):
        for _ in range(RUNS):
            before = len(said(settings, case))
            with running(settings, f"workers.{worker}", home) as process:
                until(partial(lambda more: len(said(settings, case)) > more, before + SAID_EACH), 60, "it is in the flow")
                told_at = time.monotonic()
                process.stop()
                assert time.monotonic() - told_at < ENDS_S
            idents, behind = said(settings, case), passed(settings, case)
            assert len(idents) == len(set(idents))
            assert behind <= len(idents) if worker == "delivery" else behind == len(idents)
