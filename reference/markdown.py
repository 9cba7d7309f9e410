"""Markdown as text: what the pages are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def cell(text: str) -> str:
    """Text that stays in its cell of a table, and is no HTML.

    >>> cell("a | b\\n  c <d>")
    'a \\\\| b c &lt;d>'
    """
    return _shown(" ".join(text.split()).replace("|", "\\|"))


def code(text: str) -> str:
    """As code, in a cell or elsewhere; nothing for nothing.

    >>> code("a|b"), code("")
    ('`a\\\\|b`', '')
    """
    return f"`{' '.join(text.split())}`".replace("|", "\\|") if text else ""


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells must have been made by `cell` or `code`. No rows: no table.

    >>> table(["a", "b"], [["1", "2"]])
    '| a | b |\\n| --- | --- |\\n| 1 | 2 |\\n'
    """
    lines = [f"| {' | '.join(row)} |\n" for row in rows]
    if not lines:
        return ""
    return f"| {' | '.join(headers)} |\n|{' --- |' * len(headers)}\n" + "".join(lines)


def prose(docstring: str | None) -> str:
    """A docstring as paragraphs. HTML in it is shown, not obeyed.

    >>> prose("One <i>\\n    `<two>`.\\n\\n    Three.")
    'One &lt;i> `<two>`.\\n\\nThree.'
    """
    paragraphs = (" ".join(part.split()) for part in (docstring or "").split("\n\n"))
    return "\n\n".join(_shown(part) for part in paragraphs if part)


def _shown(text: str) -> str:
    """Markdown without HTML; between backticks nothing has to be done, nor would be undone."""
    parts = text.split("`")
    return "`".join(part if n % 2 else part.replace("<", "&lt;") for n, part in enumerate(parts))
