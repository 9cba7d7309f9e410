"""The README and the pages of docs/: their fenced blocks, and the commands in them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"
MADE = ("reference", "adr/index.md")  # by the build of the site
PROGRAMS = ("clickwake", ".venv/bin/clickwake", "curl", "make", "docker", "kubectl", "python", "pip", "helm", "jupyter")
SHELL = ("", "bash", "sh", "console")


class Block(NamedTuple):
    """`expect`: a pattern of what it prints, from a comment `<!-- expect: … -->` on the line before."""

    language: str
    text: str
    expect: str | None
    where: str


def guides() -> list[Path]:
    docs = ROOT / "docs"
    pages = [path for path in sorted(docs.rglob("*.md")) if not str(path.relative_to(docs)).startswith(MADE)]
    return [ROOT / "README.md", *pages]


def blocks(path: Path, *languages: str) -> list[Block]:
    """The fenced blocks of some languages (all without), in order."""
    text = path.read_text(encoding="utf-8")
    found = re.finditer(r"^(?:<!-- expect: (.+?) -->\n)?```(\S*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [Block(one[2], one[3], one[1], f"{path.relative_to(ROOT)}:{text[:one.start(3)].count(chr(10)) + 1}")
            for one in found if not languages or one[2] in languages]  # fmt: skip


def rule_files(path: Path) -> list[tuple[str, str, str]]:
    """(first key, whole text, where) of each file of rules that a page shows. A list by itself, a part of such a file, takes
    the place of the list of the one before."""
    found: list[tuple[str, str, str]] = []
    whole: dict[str, Any] = {}
    for block in blocks(path, "yaml"):
        shown = msgspec.yaml.decode(block.text)
        if isinstance(shown, list):
            shown = whole | {next(key for key, value in whole.items() if isinstance(value, list)): shown}
        whole = shown
        found.append((next(iter(whole)), msgspec.yaml.encode(whole).decode(), block.where))
    return found


def commands(text: str) -> list[str]:
    """The commands of a shell block, those that go on over several lines in one.

    >>> commands("clickwake sql 'SELECT\\n  1'  # one\\nhello\\ncurl a \\\\\\n  b\\n")
    ["clickwake sql 'SELECT\\n  1'  # one", 'curl a \\\\\\n  b']
    """
    found, open_ = [], ""
    for line in text.splitlines():
        open_ = f"{open_}\n{line}" if open_ else line.removeprefix("$ ")
        if not open_.startswith(tuple(f"{program} " for program in PROGRAMS)):
            open_ = ""
        elif words(open_) is not None and not line.endswith("\\"):
            found.append(open_)
            open_ = ""
    assert not open_, f"a command without an end: {open_}"
    return found


def words(command: str) -> list[str] | None:
    """As the shell sees them, without a comment; None while a quotation is open."""
    try:
        return shlex.split(command, comments=True)
    except ValueError:
        return None
