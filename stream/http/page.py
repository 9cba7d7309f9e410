"""An OpenAPI document for people: one HTML page without outside parts."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import msgspec

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;background:#fff}
table{border-collapse:collapse;width:100%}td{border-top:1px solid #d8dee4;padding:.4rem .6rem;vertical-align:top}
td:first-child{white-space:nowrap}a{color:inherit}
code,pre{font:14px/1.45 ui-monospace,monospace;overflow-wrap:anywhere}pre{background:#f3f5f7;padding:1rem;overflow:auto}
@media(prefers-color-scheme:dark){body{background:#15181c;color:#e4e7ea}pre{background:#20252b}td{border-color:#333a42}}
@media(max-width:40rem){td{display:block;border:0}td:first-child{border-top:1px solid #d8dee4;white-space:normal}}"""

SERVED_PLAINLY = {  # by every service: path → what it is, media type
    "/health/live": ("The process runs.", "application/json"), "/metrics": ("Prometheus metrics.", "text/plain"),
    "/openapi.json": ("This description.", "application/json"), "/docs": ("The same for people.", "text/html"),
}


def plain_paths(served: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """What is got without a key or a parameter, as an OpenAPI document's paths: those of every service, and `served`."""
    found: dict[str, Any] = {
        path: {"get": {"summary": summary, "responses": {"200": {"description": "ok", "content": {media_type: {}}}}}}
        for path, (summary, media_type) in (SERVED_PLAINLY | dict(served)).items()
    }
    return found | {"/": {"get": {"summary": "To /docs.", "responses": {"307": {"description": "See Location."}}}}}


def html_of(document: dict[str, Any], curl: str, more: str = "") -> str:
    """The page of a document; `curl` is a call to try, `more` HTML that comes before the calls."""
    info = document["info"]
    calls = "".join(
        _call(path, method, call) for path, methods in document["paths"].items() for method, call in methods.items()
    )
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_esc(info["title"])}</title>'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>'
            f'<h1>{_esc(info["title"])}</h1><p>{_esc(info["description"])}</p>{more}'
            f'<p>Machine-readable: <a href="/openapi.json">openapi.json</a>.</p>'
            f'<h2>Try it</h2><pre>{_esc(curl)}</pre><h2>Calls</h2>{calls}</body></html>')  # fmt: skip


def table(rows: list[tuple[str, str]]) -> str:
    """Two columns, the first as code."""
    body = "".join(f"<tr><td><code>{_esc(name)}</code></td><td>{_esc(text)}</td></tr>" for name, text in rows)
    return f"<table>{body}</table>"


def _call(path: str, method: str, call: dict[str, Any]) -> str:
    parameters = [(one["name"], _parameter(one)) for one in call.get("parameters", ())]
    answers = [(status, answer["description"]) for status, answer in call["responses"].items()]
    return (f"<h3><code>{method.upper()} {_esc(path)}</code></h3><p>{_esc(call['summary'])}</p>"
            + (f"<h4>Parameters</h4>{table(parameters)}" if parameters else "")
            + f"<h4>Answers</h4>{table(answers)}")  # fmt: skip


def _parameter(one: dict[str, Any]) -> str:
    schema = {name: value for name, value in one["schema"].items() if name != "title"}
    return f"{one.get('description', '')} {msgspec.json.encode(schema).decode()}".strip()


def _esc(value: object) -> str:
    return html.escape(str(value))
