"""The reference says what there is: compared with the engine, the code, and the build of the site."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from reference import pages, streams, tables
from stream.adapters.database import clickhouse
from stream.settings import Settings
from tests.support.guides import ROOT

LOADED = re.compile(r"""<(?:script|img|iframe)[^>]*?\ssrc="([^"]+)"|<link(?=[^>]*rel="(?:stylesheet|preload|icon))"""
                    r'[^>]*?href="([^"]+)"')


def test_tables_are_those_of_the_engine(settings: Settings) -> None:
    """Names, columns in their order, types and comments, as the engine describes them after the migrations."""
    clickhouse.migrate(settings.clickhouse, wait_s=10)
    with closing(clickhouse.connect(settings.clickhouse, wait_s=10)) as client:
        columns = client.query("SELECT table, name, type, comment FROM system.columns WHERE database = currentDatabase() "
                               "ORDER BY table, position")  # fmt: skip
        comments = client.query("SELECT name, comment FROM system.tables WHERE database = currentDatabase()")
    written = {one.name: one for one in tables.tables()}
    assert {(one.name, one.comment) for one in written.values()} == {row for row in map(tuple, comments.result_rows)
                                                                     if row[0] != "schema_migrations"}  # fmt: skip
    for name, one in written.items():
        there = [(column, "".join(kind.split()), said) for table, column, kind, said in columns.result_rows if table == name]
        if one.columns:
            assert [(column, "".join(kind.split()), said) for column, kind, said in one.columns] == there
        else:
            assert "Columns as in" in one.comment


def test_the_reference_has_everything(tmp_path: Path) -> None:
    pages.write(tmp_path)
    assert {path.stem for path in tmp_path.glob("*.md")} == {*pages.PAGES, "index"}
    metrics = {name for name, *_ in streams.metrics()}
    asked = set(re.findall(r"clickwake_[a-z_]+", (ROOT / "deploy/prometheus/rules.yml").read_text()))
    alerted = {one if one in metrics else re.sub(r"_(bucket|count|sum)$", "", one) for one in asked}  # of histograms
    assert len(alerted) > 5 and alerted <= metrics
    for path in tmp_path.glob("*.md"):
        for line in path.read_text().splitlines():
            assert not line.startswith("|") or len(re.findall(r"(?<!\\)\|", line)) > 2, f"{path.name}: {line}"


def test_the_site_is_built_and_asks_nobody(tmp_path: Path) -> None:
    """Strict: a broken link, picture or place in the contents fails. And what a page loads is in its folder."""
    pytest.importorskip("sphinx")
    strict = ["--fail-on-warning", "--keep-going", "--nitpicky", "--quiet", "--doctree-dir", str(tmp_path / "doctrees")]
    built = subprocess.run([sys.executable, "-m", "sphinx", *strict, str(ROOT / "docs"), str(tmp_path / "site")],
                           capture_output=True, text=True, check=False)  # fmt: skip
    assert built.returncode == 0, built.stderr
    site = [page for page in sorted((tmp_path / "site").rglob("*.html")) if "_static" not in page.parts]
    assert len(site) > 30
    for page in site:
        for url in map("".join, LOADED.findall(page.read_text())):
            assert not re.match(r"[a-z]+:|//", url), f"{page.name} loads {url}"
            assert (page.parent / url.partition("?")[0]).exists(), f"{page.name} loads {url}"
    for sheet in (tmp_path / "site").rglob("*.css"):
        assert not re.findall(r"(?:@import\s+|url\()['\"]?(?:https?:)?//", sheet.read_text()), sheet.name
