"""What the README and docs/ tell people to type exists: commands, options, settings, files of rules, records."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import typer.main
import yaml

import stream.api.experiments
import stream.api.offers
import stream.delivery.rules
import stream.segments
from clickwake.cli import app
from schemas.outputs import Complements, Reminder
from stream.api.answers import Answer
from stream.delivery.channels import Message
from stream.settings import Settings
from tests.support.guides import ROOT, SHELL, Block, blocks, commands, guides, rule_files, spoken, words

# What a YAML block is, by its first word, and what reads it. A new kind of file needs a line here.
FILES: dict[str, Callable[[Path], Any]] = {
    "segments": stream.segments.load, "lifecycle": stream.segments.load,
    "channels": stream.delivery.rules.load, "deliveries": stream.delivery.rules.load,
    "experiments": stream.api.experiments.load, "holdout": stream.api.offers.load, "placements": stream.api.offers.load,
}  # fmt: skip
# Likewise a JSON block, by its first key, and what is written so.
RECORDS = {"recommendation_id": Complements, "reminder_id": Reminder, "delivery_id": Message, "scenario": Answer}
# What is done with a block in each language. One that nothing is done with would be nobody's to keep true.
TRIED = {
    **dict.fromkeys(SHELL, "run by test_docs_run.py"), "python": "run by test_docs_run.py",
    "html": "loaded by tests/browser/test_tracker.py", "sql": "asked by tests/integration/test_readme.py",
    "yaml": "read below", "json": "held against its form below", "text": "drawn, or printed: nobody types it",
    "{toctree}": "the build of the site, test_reference.py",
}  # fmt: skip


def spoken_of() -> list[tuple[str, list[str]]]:
    """(where, words) of every call of clickwake, in blocks and between backticks, and of what is deployed."""
    found = []
    for path in guides():
        calls = [(block.where, one) for block in blocks(path, *SHELL) for one in commands(block)]
        calls += [(one.where, one.text) for one in spoken(path)]
        found += [(where, words(call) or call.split()) for where, call in calls]
    for where in ("docker-compose.yml", "deploy/kubernetes/clickwake.yaml"):
        called = re.findall(r"command: (\[\"?clickwake\b.*\])", (ROOT / where).read_text(encoding="utf-8"))
        assert called
        found += [(where, yaml.safe_load(one)) for one in called]
    return [(where, call[1:]) for where, call in found if call[0].endswith("clickwake")]


def test_every_command_and_option_exists() -> None:
    root = typer.main.get_command(app)
    calls = spoken_of()
    assert len(calls) >= 80
    for where, call in calls:
        rest, command = list(call), root
        while getattr(command, "commands", None) and rest and not rest[0].startswith("-"):
            assert rest[0] in command.commands, f"{where}: clickwake {' '.join(call)}"  # type: ignore[attr-defined]
            command = command.commands[rest.pop(0)]  # type: ignore[attr-defined]
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        used = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
        assert used <= options | {"--help"}, f"{where}: clickwake {' '.join(call)}"


def test_every_setting_exists() -> None:
    """Also in deploy/: a name that is not there would stop a process from starting."""
    kinds = {name: field.annotation for name, field in Settings.model_fields.items()}
    known = {f"CLICKWAKE_{name}".upper() for name in kinds}
    known |= {f"CLICKWAKE_{name}__{inner}".upper() for name, kind in kinds.items()
              for inner in getattr(kind, "model_fields", ())}  # fmt: skip
    named = {(str(path.relative_to(ROOT)), one) for path in guides()
             for one in re.findall(r"CLICKWAKE_[A-Z0-9_]*[A-Z0-9]", path.read_text(encoding="utf-8"))}  # fmt: skip
    assert len(named) > 30
    others = ("CLICKWAKE_TEST_", "CLICKWAKE_CHAOS")  # the tests' own
    assert {(where, one) for where, one in named if one not in known and not one.startswith(others)} == set()


@pytest.mark.parametrize("path", guides(), ids=lambda path: path.stem)
def test_every_file_of_rules_is_read(path: Path, tmp_path: Path) -> None:
    for first, text, where in rule_files(path):
        assert first in FILES, f"{where}: nothing is known to read {first!r}; FILES above is the place"
        (tmp_path / "rules.yml").write_text(text)
        FILES[first](tmp_path / "rules.yml")


def test_every_record_has_its_form() -> None:
    """`…` stands for what is left out; what is shown must be there, and be of its kind."""
    times = jsonschema.FormatChecker(())
    times.checks("date-time", ValueError)(lambda text: bool(datetime.fromisoformat(text)))
    shown = [block for path in guides() for block in blocks(path, "json")]
    assert len(shown) >= 3
    for block in shown:
        record = json.loads(re.sub(r",\s*…(?=\s*[}\]])", "", block.text))
        assert next(iter(record)) in RECORDS, f"{block.where}: nothing is known to be written so; RECORDS above is the place"
        form = partial(msgspec.json.schema(RECORDS[next(iter(record))]))
        found = jsonschema.Draft202012Validator(form, format_checker=times).iter_errors(record)
        assert [f"{block.where}: {error.json_path}: {error.message}" for error in found] == []


def partial(schema: Any) -> Any:
    """The same form where fields may be left out, and none added."""
    if isinstance(schema, list):
        return [partial(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: partial(value) for name, value in schema.items() if name != "required"}
    return inner | ({"additionalProperties": False} if "properties" in schema else {})


def test_every_block_is_tried_by_something() -> None:
    assert {block.where: block.language for path in guides() for block in blocks(path) if block.language not in TRIED} == {}


@pytest.mark.parametrize(("language", "text"), [
    ("", "clickwake status\nclikwake status\n"), ("bash", "A=1 wget x\n"), ("console", "$ wget x\n"),
    ("", "clickwake sql 'SELECT 1\n"), ("bash", "cat > items.csv <<'EOF'\nid\n"), ("", "clickwake \\\n"),
])  # fmt: skip
def test_a_line_that_nothing_would_try_is_found(language: str, text: str) -> None:
    with pytest.raises(AssertionError, match=r"neither a command of PROGRAMS|a command without an end"):
        commands(Block(language, text, None, "here"))


def test_every_page_has_its_place() -> None:
    """A page nobody can find would be a warning of the build too; this says what to do."""
    contents = (block for page in ("index", "guides", "explanations")
                for block in blocks(ROOT / "docs" / f"{page}.md", "{toctree}"))  # fmt: skip
    placed = {name for block in contents for name in re.findall(r"[\w/-]+", block.text)}
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert pages <= placed, "add a line for each to the contents of docs/guides.md or docs/explanations.md"


def test_links_of_the_readme_lead_somewhere() -> None:
    """Those of docs/ are the build's business."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(links) > 10 and [link for link in links if not (ROOT / link).exists()] == []
