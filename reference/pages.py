"""All pages of the reference, written into a folder: `docs/reference/`, which is not kept."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import msgspec

from producers.collector import openapi as collector
from reference import commands, http, settings, streams, tables
from reference.markdown import table
from stream.api import openapi as read_api
from stream.settings import Api, Collector

CALLS = {"http-collector": ("HTTP: the collector", collector.document(Collector())),
         "http-read-api": ("HTTP: the read API", read_api.document(Api()))}
PAGES: dict[str, Callable[[], str]] = {
    "commands": commands.page, "settings": settings.page,
    **{name: functools.partial(http.page, title, document, f"{name}.json") for name, (title, document) in CALLS.items()},
    "topics": streams.topics_page, "records": streams.records_page, "tables": tables.page, "metrics": streams.metrics_page,
}


def write(folder: Path) -> None:
    """Every page, an index of them, and the two OpenAPI documents. What is the same already is left alone."""
    texts = {f"{name}.md": f"{page()}\n" for name, page in PAGES.items()}
    texts["index.md"] = index()
    for name, (_, document) in CALLS.items():
        texts[f"{name}.json"] = msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.name not in texts:
            path.unlink()
    for file, text in texts.items():
        if not (folder / file).exists() or (folder / file).read_text(encoding="utf-8") != text:
            (folder / file).write_text(text, encoding="utf-8")


def index() -> str:
    return "\n".join(["# Reference", "", "Made from the code whenever this site is built: it cannot be out of date.", "",
                      "```{toctree}", ":maxdepth: 1", "", *PAGES, "```", ""])


def decisions(folder: Path) -> str:
    """A list of the records in `folder`, `NNNN-name.md`, by number."""
    records = sorted(folder.glob("[0-9]*.md"))
    rows = ([path.name[:4].lstrip("0"), f"[{_title(path)}]({path.name})"] for path in records)
    return "\n".join(["# Decisions that are hard to undo", "", table(["", "what was decided"], rows),
                      "```{toctree}", ":hidden:", "", *(path.stem for path in records), "```", ""])


def _title(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
    return first.partition(". ")[2] or first
