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
PROGRAMS = ("clickwake", "curl", "make", "docker", "kubectl", "python", "pip", "jupyter", "export", "mkdir", "cat", "head")
VARIABLES = r"""(?:\w+=(?:'[^']*'|"[^"]*"|[^\s'"])*\s+)*"""  # set for one command, before it
HERE = re.compile(r"<<'(\w+)'")  # … and from the next line on what it reads, until a line that is this word
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


def spoken(path: Path) -> list[Block]:
    """The calls of clickwake between backticks, outside of blocks, with the variables set for them."""
    prose = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [Block("", " ".join(one.split()), None, str(path.relative_to(ROOT)))
            for one in re.findall(rf"`({VARIABLES}clickwake\s[a-z][^`\\]*)`", prose)]  # fmt: skip


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


def commands(block: Block) -> list[str]:
    """The commands of a shell block, those that go on over several lines in one. Every line of it is a command's, or a
    comment, or in a console what one printed; raises AssertionError for one that is not, which nothing would try.

    >>> def of(text, language="bash"):
    ...     return commands(Block(language, text, None, "here"))
    >>> of("# why\\nclickwake sql 'SELECT\\n  1'  # one\\nA=1 B='2 3' curl a \\\\\\n  b\\n")
    ["clickwake sql 'SELECT\\n  1'  # one", "A=1 B='2 3' curl a \\\\\\n  b"]
    >>> of("cat > c <<'EOF'\\nit's\\nEOF\\n\\nmake docs\\n")
    ["cat > c <<'EOF'\\nit's\\nEOF", 'make docs']
    >>> of("$ make docs\\nhello\\n", "console")
    ['make docs']
    """
    found, open_ = [], ""
    for line in block.text.splitlines():
        if open_:
            open_ += f"\n{line}"
        elif (block.language == "console" and not line.startswith("$ ")) or not line.strip() or line.startswith("#"):
            continue
        else:
            open_ = line.removeprefix("$ ")
            said = f"{block.where}: neither a command of PROGRAMS nor a comment: {open_}"
            assert re.match(rf"{VARIABLES}(?:{'|'.join(PROGRAMS)})(?:\s|$)", open_), said
        if _whole(open_):
            found.append(open_)
            open_ = ""
    assert not open_, f"{block.where}: a command without an end: {open_}"
    return found


def _whole(command: str) -> bool:
    """Whether no quotation, line or document of it goes on."""
    first, _, document = command.partition("\n")
    if read := HERE.search(first):
        return document.endswith(f"\n{read[1]}")
    return words(command) is not None and not command.endswith("\\")


def words(command: str) -> list[str] | None:
    """As the shell sees them, from the program on, without a comment; None while a quotation is open."""
    try:
        return shlex.split(re.sub(f"^{VARIABLES}", "", command), comments=True)
    except ValueError:
        return None
