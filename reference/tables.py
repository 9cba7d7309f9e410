"""Tables and views of ClickHouse with their columns and comments, as the migrations leave them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from reference.markdown import cell, code, table
from stream.adapters.database.clickhouse import migrations

NAME = r"(?:IF NOT EXISTS |IF EXISTS )?`?(\w+)`?"
SAID = r"'((?:[^'\\]|\\.|'')*)'"
COMMENT = f"COMMENT {SAID}"
CREATED = re.compile(rf"CREATE (?:OR REPLACE )?(TABLE|VIEW|MATERIALIZED VIEW) {NAME}")
COLUMN = re.compile(rf"^ {{4}}`?(\w+)`? ((?:(?!COMMENT ').)+?)\s+{COMMENT}(?: CODEC\([^\n]+\))?,?$",
                    re.MULTILINE | re.DOTALL)  # fmt: skip
ADDED = re.compile(rf"ADD COLUMN {NAME} (.+?) {COMMENT}", re.DOTALL)
SAID_ANEW = re.compile(rf"COMMENT COLUMN {NAME} {SAID}")
DROPPED = re.compile(rf"DROP (?:TABLE|VIEW) {NAME}")


@dataclass(slots=True)
class Table:
    """`columns`: (name, type, comment); empty for a view whose comment says whose columns it has."""

    name: str
    kind: str
    comment: str
    columns: list[tuple[str, str, str]] = field(default_factory=list)


def tables() -> list[Table]:
    """In the order in which the migrations first make them, each as the last one leaves it."""
    found: dict[str, Table] = {}
    for migration in migrations():
        for statement in migration.statements:
            if created := CREATED.match(statement):
                found[created[2]] = _table(created[2], created[1].lower(), statement)
            elif dropped := DROPPED.match(statement):
                found.pop(dropped[1], None)
            elif altered := re.match(rf"ALTER TABLE {NAME}", statement):
                columns = found[altered[1]].columns
                columns += [(one[1], _type(one[2]), _said(one[3])) for one in ADDED.finditer(statement)]
                anew = {one[1]: _said(one[2]) for one in SAID_ANEW.finditer(statement)}
                columns[:] = [(name, kind, anew.get(name, said)) for name, kind, said in columns]
    return list(found.values())


def _table(name: str, kind: str, statement: str) -> Table:
    head = re.split(r"^(?:ENGINE|AS SELECT|AS WITH|AS$|AS\b)", statement, maxsplit=1, flags=re.MULTILINE)[0]
    comment = re.search(rf"{COMMENT}\s*$", statement)
    return Table(name, kind, _said(comment[1]) if comment else "",
                 [(one[1], _type(one[2]), _said(one[3])) for one in COLUMN.finditer(head)])


def _type(text: str) -> str:
    """The type alone: what fills the column, and how it is compressed, is the table's own business."""
    return re.split(r" (?:DEFAULT|MATERIALIZED|ALIAS|CODEC|EPHEMERAL)\b", text)[0].strip()


def _said(text: str) -> str:
    return text.replace("''", "'").replace("\\'", "'")


def page() -> str:
    found = tables()
    index = ([f"[{one.name}](#{one.name})", one.kind, cell(one.comment)] for one in found)
    parts = ["# Tables and views", "What the numbered migrations in `schemas/clickhouse/` make. Tables that can see a "
             "replay are read with `FINAL`, or by views that do.", table(["name", "", "what it is"], index)]
    for one in found:
        rows = ([code(name), code(kind), cell(comment)] for name, kind, comment in one.columns)
        parts += [f"## {one.name}", cell(one.comment), table(["column", "type", "what it is"], rows)]
    return "\n\n".join(part for part in parts if part)
