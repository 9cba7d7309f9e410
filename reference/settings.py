"""Every setting: the variable that sets it, what it takes, its default, what it is for."""

from __future__ import annotations

import types
import typing
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from reference.markdown import cell, code, prose, table
from stream import settings
from stream.settings import Settings

PREFIX, DELIMITER = Settings.model_config["env_prefix"], Settings.model_config["env_nested_delimiter"]
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
WORDS = {str: "text", bool: "true or false", int: "integer", float: "number", Path: "path", SecretStr: "secret",
         datetime: "ISO time"}
SECRET = "(secret)"  # noqa: S105  # what stands in the place of one


def page() -> str:
    parts = ["# Settings", prose(settings.__doc__), "## Everything", _rows("", Settings)]
    for name, field in Settings.model_fields.items():
        if kind := _section(field):
            docstring = kind.__doc__ if kind.__doc__ != BaseModel.__doc__ else None
            parts += [f"## {name}", prose(docstring), _rows(f"{name}{DELIMITER}", kind)]
    return "\n\n".join(part for part in parts if part)


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _rows(path: str, kind: type[BaseModel]) -> str:
    return table(["variable", "takes", "default", "what it is"], (
        [code(f"{PREFIX}{path}{name}".upper()), cell(takes(field.annotation, tuple(field.metadata))), code(_default(field)),
         cell(field.description or "")]
        for name, field in kind.model_fields.items() if not _section(field)))


def takes(kind: Any, metadata: tuple[Any, ...] = ()) -> str:
    """A type in words.

    >>> takes(int), takes(str | None), takes(Literal["a", "b"]), takes(tuple[str, ...]), takes(dict[str, Path])
    ('integer', 'text', 'a, b', 'JSON list of text', 'JSON object of path')
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return takes(inner[0], inner[1:])
    if origin in (typing.Union, types.UnionType):
        text = " or ".join(takes(one) for one in inner if one is not type(None))
    elif origin is Literal:
        text = ", ".join(str(one) for one in inner)
    elif origin is tuple and inner[-1] is not Ellipsis:
        text = " and ".join(takes(one) for one in inner)
    elif origin is tuple:
        text = f"JSON list of {takes(inner[0])}"
    elif origin is list:
        text = takes(inner[0])
    elif origin is dict:
        text = f"JSON object of {takes(inner[1])}"
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        text = "{" + ", ".join(kind.model_fields) + "}"
    else:
        text = WORDS[kind]
    return " ".join([text, *_bounds(metadata)])


def _bounds(metadata: tuple[Any, ...]) -> list[str]:
    found = [f"{sign} {getattr(one, name):,}" for one in metadata for name, sign in BOUNDS.items() if hasattr(one, name)]
    patterns = [f"like {one.pattern}" for one in metadata if getattr(one, "pattern", None)]
    return found + patterns


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value in ("", (), {}) or (isinstance(value, SecretStr) and not value.get_secret_value()):
        return ""
    if isinstance(value, str | Path):
        return str(value)
    return msgspec.json.encode(value, enc_hook=lambda one: SECRET if isinstance(one, SecretStr) else str(one)).decode()
