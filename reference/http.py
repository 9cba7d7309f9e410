"""The HTTP calls of the collector and the read API, from the OpenAPI documents they serve."""

from __future__ import annotations

from typing import Any

from reference.markdown import cell, code, prose, table
from reference.streams import fields, type_of


def page(title: str, document: dict[str, Any], file: str) -> str:
    """`file`: where the document itself is, beside the page."""
    parts = [f"# {title}", prose(document["info"]["description"]), f"The same as [OpenAPI 3.1]({file}); it "
             "serves it itself, at `/openapi.json`, and a page at `/docs`."]
    for path, methods in document["paths"].items():
        for method, call in methods.items():
            parts += _call(f"{method.upper()} {path}", call)
    for name, schema in document["components"]["schemas"].items():
        parts += [f"## {name}", prose(schema.get("description")), fields(schema)]
    return "\n\n".join(part for part in parts if part)


def _call(name: str, call: dict[str, Any]) -> list[str]:
    body = call.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    parameters = ([code(one["name"]), one["in"], cell(type_of(one["schema"])), cell(one.get("description", ""))]
                  for one in call.get("parameters", ()))
    answers = ([code(status), cell(one.get("description", one.get("$ref", "").rpartition("/")[2])), cell(_answer(one))]
               for status, one in call["responses"].items())
    return [f"## {name}", prose(call["summary"]), f"Body: {cell(type_of(body))}." if body else "",
            table(["parameter", "in", "type", "what it is"], parameters), table(["answer", "means", "body"], answers)]


def _answer(one: dict[str, Any]) -> str:
    schema = one.get("content", {}).get("application/json", {}).get("schema")
    return type_of(schema) if schema else ""
