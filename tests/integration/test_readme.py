"""What the README tells people to type is true: every query is answered, every command exists."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import pytest
import typer.main

from clickwake.cli import app
from stream.adapters import clickhouse
from stream.settings import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
GUIDES = [README, *(path.read_text() for path in sorted(ROOT.glob("docs/*.md")))]


def blocks(language: str, text: str = README) -> list[str]:
    """The fenced blocks of a language, in order."""
    fences = re.split(r"^```(\w*)\n", text, flags=re.MULTILINE)[1:]  # a fence, a text, …; every second pair is prose
    return [text for fence, text in zip(fences[0::4], fences[1::4], strict=False) if fence == language]


def test_every_query_is_answered(settings: Settings) -> None:
    clickhouse.migrate(settings.clickhouse)
    queries = [query for block in blocks("sql") for query in clickhouse.statements(block)]
    assert len(queries) >= 10
    with closing(clickhouse.connect(settings.clickhouse, wait_s=10.0)) as client:
        for query in queries:
            try:
                client.query(query)
            except Exception as error:
                pytest.fail(f"{query}\n{error}")


def test_every_command_and_option_exists() -> None:
    root = typer.main.get_command(app)
    text = "".join(block for guide in GUIDES for block in blocks("", guide))
    calls = re.findall(r"^(?:\.venv/bin/)?clickwake ([^#\n]*)", text, flags=re.MULTILINE)
    assert len(calls) >= 25
    for call in calls:
        words, command = call.split(), root
        while getattr(command, "commands", None) and words:
            assert words[0] in command.commands, call  # type: ignore[attr-defined]
            command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= options, call
