"""Rules of segments for the workers of a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.town import RULED, RULES


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rules.yml"
    file.write_text(RULES)
    monkeypatch.setenv(RULED, str(file))
