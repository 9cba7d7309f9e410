"""Dead letters on the dashboard: which of them a choice reads and mends, and who sees those of no tenant."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from nicegui import Client, ui

from clickwake import dead_letters as letters
from clickwake.dashboard import letters_page, queries
from clickwake.dashboard.sessions import Visitor
from clickwake.dashboard.words import Words
from producers.dead_letters import dead_letter
from schemas import topics
from schemas.dead_letter import DeadLetter, Message, Source
from tests.support.kafka_python import on_topics
from tests.unit.test_dashboard_pages import Store, page_on, texts

AT = datetime(2026, 11, 25, 10, 30, tzinfo=UTC)
TITLE = "Of no tenant: what came without a key"


def letter(tenant: str, number: int) -> DeadLetter:
    payload = {"messageId": f"m{number}", "type": "track", "event": "Product Viewed", "userId": 17,
               "properties": {"product_id": "i1"}}  # fmt: skip
    return dead_letter(
        tenant=tenant, kind="undecodable", messages=[Message(path="userId", keyword="type", message="Expected `str`")],
        payload=msgspec.json.encode(payload), source=Source(topic="collector:/v1/track", partition=0, offset=number), at=AT,
    )  # fmt: skip


async def test_a_choice_reads_and_mends_the_newest_of_its_cause_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = ([letter(tenant, number) for number in range(5)] for tenant in ("t", "u"))
    topic = topics.DEAD_LETTERS.name("clickwake")
    records = [SimpleNamespace(topic=topic, partition=0, offset=at, key=None, value=msgspec.json.encode(one))
               for at, one in enumerate((*mine, *theirs))]  # fmt: skip
    on_topics(monkeypatch, {topic: records})
    monkeypatch.setattr(letters, "sent_again", lambda *_: set())
    mended: list[DeadLetter] = []
    tried = letters.tried

    def noted(settings: Any, some: list[DeadLetter]) -> Any:
        mended.extend(some)
        return tried(settings, some)

    monkeypatch.setattr(letters, "tried", noted)
    named = [*mine[2:4], theirs[4]]  # whatever the store says, of another tenant there is nothing to see
    store = Store(LETTERS_OF=[{"dead_letter_id": one.dead_letter_id, "of_all": 4_000} for one in named])

    async def nothing() -> None: ...

    with Client(ui.page("/"), request=None) as client:
        await letters_page._try(page_on(store, tmp_path), {"kind": "undecodable", "where": "userId"}, nothing)
        assert [one.dead_letter_id for one in mended] == [one.dead_letter_id for one in mine[2:4]]
        said = texts(client)
    assert "The newest 3 of 4,000 are tried." in said and "2 / 2 would be taken once mended" in said
    assert any("cannot be sent again" in text for text in said)
    assert Words("zh")("The newest 3 of 4,000 are tried.") == "共 4,000 条，试行最新的 3 条。"


@pytest.mark.parametrize("tenants", [None, ("t",)])
async def test_letters_of_no_tenant_are_shown_to_who_may_see_all(tmp_path: Path, tenants: tuple[str, ...] | None) -> None:
    class Letters(Store):
        async def rows(self, sql: str, **parameters: Any) -> queries.Rows:
            return [row for row in await super().rows(sql, **parameters) if row["tenant"] == parameters["tenant"]]

    rows = [{"tenant": tenant, "kind": "undecodable", "where": "", "why": "no JSON", "letters": 1, "newest": "",
             "example": f"of {tenant}", "of_all": 1} for tenant in ("t", "")]  # fmt: skip
    page = page_on(Letters(LETTERS=rows), tmp_path, visitor=Visitor("ann", "read", tenants=tenants))
    with Client(ui.page("/"), request=None) as client:
        await letters_page.dead_letters(page)
        tables = [one.rows for one in client.elements.values() if isinstance(one, ui.table)]
        assert [row["example"] for some in tables for row in some] == (["of t", "of "] if tenants is None else ["of t"])
        assert (TITLE in texts(client)) is (tenants is None)
