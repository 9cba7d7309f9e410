"""What travels and what is measured: topics, the JSON Schemas of their records, names of metrics."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from reference.markdown import cell, code, prose, table
from schemas import export, topics
from stream.settings import Kafka

ROOT = Path(__file__).parents[1]
MEASURED = ("clickwake", "producers", "stream", "workers")
KINDS = ("Counter", "Gauge", "Histogram")


def topics_page() -> str:
    kafka = Kafka()
    rows = ([code(one.name(kafka.topic_prefix)), code(one.key),
             f"{code(str(kafka.partitions))} (setting)" if one.by_user else code(str(one.partitions)),
             "compacted" if one.cleanup == "compact" else f"{one.retention_ms // topics.DAY_MS} days",
             f"{one.message_bytes_max // 1024:,} KiB", cell(one.why)] for one in topics.TOPICS)
    return "\n\n".join([
        "# Topics", "`schemas/topics.py` is the table; `clickwake topics` creates what is missing, and says what differs. "
        "Topics by user share their number of partitions (murmur2 of the key): one worker owns a user in all of them.",
        table(["topic", "key", "partitions", "kept", "largest message", "why"], rows)])


def records_page() -> str:
    parts = ["# Records", "What is on the topics, from the structs that are written. The files are `schemas/json/`; fields "
             "that are not named here are allowed."]
    for name in export.EXPORTED:
        whole = export.schema(name)
        parts += [f"## {name}", prose(whole.get("description")), fields(whole)]
        for inner, schema in whole["$defs"].items():
            parts += [f"### {inner} of {name}", prose(schema.get("description")), fields(schema)]
    return "\n\n".join(part for part in parts if part)


def fields(schema: dict[str, Any]) -> str:
    """The properties of a JSON Schema object as a table."""
    required = schema.get("required", ())
    return table(["field", "type", "default", ""], (
        [code(name), cell(type_of(one)), code(str(one["default"])) if one.get("default") not in (None, [], {}, "") else "",
         cell("required" if name in required else one.get("description", ""))]
        for name, one in schema.get("properties", {}).items()))


def type_of(schema: dict[str, Any]) -> str:
    """A JSON Schema in a few words.

    >>> type_of({"type": "array", "items": {"$ref": "#/$defs/Reason"}})
    'array of Reason'
    >>> type_of({"anyOf": [{"type": "string"}, {"type": "null"}]})
    'string or null'
    """
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(type_of(one) for one in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(str(one) for one in schema["enum"])
    kind = schema.get("type", "anything")
    if kind == "array" and isinstance(schema.get("items"), dict):
        return f"array of {type_of(schema['items'])}"
    bounds = [f"{sign} {schema[key]}" for key, sign in (("minimum", "≥"), ("maximum", "≤")) if key in schema]
    return " ".join([schema.get("format", kind), *bounds])


def metrics_page() -> str:
    rows = ([code(name), kind, cell(", ".join(labels)), cell(text), code(where)]
            for name, kind, labels, text, where in metrics())
    where = ("Prometheus metrics: of collector, read API and demo shop at `/metrics`, of dashboard and workers at a port of "
             "their own, named in `<home>/run/*.json`.")  # fmt: skip
    return "\n\n".join(["# Metrics", where, table(["metric", "kind", "labels", "what it is", "made in"], rows)])


def metrics() -> list[tuple[str, str, list[str], str, str]]:
    """(name, kind, labels, what it is, file) of each metric that the code makes, by name. Names as they are scraped."""
    found = []
    for path in sorted(path for folder in MEASURED for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) in KINDS and len(node.args) >= 2:
                name, text, *more = (ast.literal_eval(one) for one in node.args[:3])
                kind, labels = node.func.id, more[0] if more else []  # type: ignore[attr-defined]
                found.append((f"{name}_total" if kind == "Counter" else name, kind.lower(), labels, text,
                              str(path.relative_to(ROOT))))
    return sorted(found)
