"""What the dashboard says that a segment is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nicegui import Client, ui

from clickwake.dashboard import pages
from clickwake.dashboard.pages import _meanings
from stream.adapters.models.model_store import BundleRefused
from stream.core.segments.audience import Audience, Cluster
from stream.settings import Settings
from tests.support import bundles
from tests.support.bundles import Exported
from tests.unit.test_dashboard_pages import Store, page_on, texts


def page_of(tmp_path: Path, rules: str) -> Any:
    settings = bundles.with_registry(Settings(home=tmp_path), tmp_path / "models")
    settings.segments_file.write_text(rules)
    said: list[tuple[str, str]] = []
    return SimpleNamespace(settings=settings, tenant="t", said=said, problem=lambda title, why: said.append((title, why)))


async def test_rules_are_told_by_their_description_and_clusters_by_their_words(tmp_path: Path, exported: Exported) -> None:
    page = page_of(tmp_path, "segments: [{name: lookers, when: views_7d > 2}]")
    cluster = Cluster(id="c1", name="garden spade", terms=("garden", "spade"), users=30, items=("i1",),
                      centroid=(1.0, *(0.0,) * 15))
    bundles.publish(page.settings.registry, exported, audience=Audience(users=90, clusters=(cluster,)))
    told = await _meanings(page)
    assert (told["lookers"], told["cluster/garden spade"]) == ("views_7d > 2", "garden, spade")
    assert told["lifecycle/prospect"] == "never bought" and not page.said


async def test_a_rule_about_another_tenants_users_is_none_here(tmp_path: Path) -> None:
    page = page_of(tmp_path, "segments: [{name: lookers, when: views_7d > 2, tenant: t}, "
                             "{name: lookers, when: views_7d > 9, tenant: u}, {name: buyers, when: orders > 0, tenant: u}]")
    told = await _meanings(page)
    assert told["lookers"] == "views_7d > 2" and "buyers" not in told


async def test_a_rule_that_nobody_meets_has_no_members(tmp_path: Path) -> None:
    """Whether somebody is in another one or not; without rules the page says where to write them."""
    some = {"segment": "lookers", "members": 3, "entered_1d": 1, "left_1d": 0, "changed_at": "2026-01-01 00:00:00"}
    for stored in ([], [some]):
        page = page_on(Store(SEGMENTS=stored), tmp_path)
        page.settings.segments_file.write_text(
            "lifecycle: false\nsegments: [{name: buyers, when: orders > 0}, {name: lookers, when: views_7d > 2}]")
        with Client(ui.page("/"), request=None) as client:
            await pages.segments(page)
            (table,) = (one for one in client.elements.values() if isinstance(one, ui.table))
            found = [(row["segment"], row["meaning"], row["members"]) for row in table.rows]
            assert sorted(found) == [("buyers", "orders > 0", 0), ("lookers", "views_7d > 2", 3 if stored else 0)]
            assert found[0][0] == ("lookers" if stored else "buyers"), "the largest first"
        page.settings.segments_file.unlink()
    with Client(ui.page("/"), request=None) as client:
        await pages.segments(page_on(Store(), tmp_path))
        assert [text.split(":")[0] for text in texts(client)] == ["No segments yet"]


async def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    page = page_of(tmp_path, "segments: [{name: lookers, when: colour > 2}]")
    assert await _meanings(page) == {} and "colour" in page.said[0][1]


async def test_a_release_that_cannot_be_read_takes_nothing_from_the_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = page_of(tmp_path, "segments: [{name: lookers, when: views_7d > 2}]")

    def refused(settings: Settings) -> None:
        raise BundleRefused("torn")

    monkeypatch.setattr(pages, "served", refused)
    assert (await _meanings(page))["lookers"] == "views_7d > 2" and page.said == [("The release cannot be read", "torn")]
