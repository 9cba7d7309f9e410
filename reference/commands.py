"""Every command with its arguments and options, as `--help` has them."""

from __future__ import annotations

from typing import Any

import typer.main

from clickwake.cli import app
from reference.markdown import cell, code, prose, table
from reference.settings import takes

ABOUT = "Settings come from the environment, see [settings](settings.md). Logs go to standard error."


def page() -> str:
    root = typer.main.get_command(app)
    return "\n\n".join(["# Commands", prose(root.help), prose(ABOUT),
                        *(part for name, command in _walk("clickwake", root) for part in _command(name, command))])


def _walk(name: str, command: Any) -> list[tuple[str, Any]]:
    """(whole name, command) of everything that can be called, a group before what is in it."""
    found = [] if name == "clickwake" else [(name, command)]
    for word, inner in getattr(command, "commands", {}).items():
        found += _walk(f"{name} {word}", inner)
    return found


def _command(name: str, command: Any) -> list[str]:
    parameters = [one for one in command.params if not getattr(one, "hidden", False) and "--help" not in one.opts]
    arguments = [one for one in parameters if one.param_type_name == "argument"]
    usage = " ".join([name, *(_argument(one) for one in arguments)])
    inner = "\n".join(f"- `{name} {word}`" for word in getattr(command, "commands", ()))
    rows = ([_names(one), _takes(one), _default(one), cell(one.help or "")] for one in parameters)
    level = "##" if name.count(" ") == 1 else "###"
    parts = [f"{level} {name}", f"`{usage}`" if arguments else "", prose(command.help), inner,
             table(["argument or option", "takes", "default", "what it is"], rows)]
    return [part for part in parts if part]


def _argument(one: Any) -> str:
    name = str(one.name).upper() + ("…" if one.nargs == -1 else "")
    return name if one.required else f"[{name}]"


def _names(one: Any) -> str:
    if one.param_type_name == "argument":
        return code(str(one.name).upper())
    return ", ".join(code(name) for name in (*one.opts, *one.secondary_opts))


def _takes(one: Any) -> str:
    if getattr(one, "is_flag", False):
        return ""
    bounds = [f"{sign} {bound:,}" for sign, bound in (("≥", one.min), ("≤", one.max)) if bound is not None]
    kind = one.type_descriptor.annotation
    return cell(" ".join([takes(kind), *bounds, *(["(several)"] if one.multiple or one.nargs == -1 else [])]))


def _default(one: Any) -> str:
    value = one.default
    if value is None or value is False or value == () or callable(value) or type(value).__name__ == "Sentinel":
        return ""
    return code("on" if value is True else str(value))
