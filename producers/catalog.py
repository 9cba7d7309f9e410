"""Puts a catalog file on the items topic: JSON lines or CSV, one item a row, errors named row by row.

Good rows are published even when others are bad, each under `tenant/item_id`, the last row of an item winning; sending
a file again changes nothing. Shops' own column names are understood (Google Merchant's among them), see ALIASES.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import msgspec

from producers.datasets.table import DatasetError, opened
from producers.kafka import Producer
from schemas import events, topics
from schemas.catalog import TEXT_CHARS_MAX, Item
from stream.settings import Settings

ALIASES = {
    "id": "item_id", "product_id": "item_id", "sku": "item_id",
    "name": "title", "product_name": "title",
    "manufacturer": "brand", "vendor": "brand",
    "product_type": "category", "google_product_category": "category",
    "link": "url", "image": "image_url", "image_link": "image_url",
}
FIELDS = frozenset(Item.__struct_fields__)
ERRORS_KEPT_MAX = 1_000  # a file of another kind has an error a row; the first ones tell


class RowError(msgspec.Struct, frozen=True):
    """`line` is the line of the file the row starts on."""

    line: int
    message: str


class Summary(msgspec.Struct, kw_only=True):
    """`published` + `failed` = `rows`."""

    rows: int = 0
    published: int = 0
    failed: int = 0
    errors: list[RowError] = msgspec.field(default_factory=list)


def _item(row: dict[str, Any], tenant: str, *, strict: bool) -> Item:
    """Converts one row; raises msgspec.ValidationError naming the field. Unknown columns are ignored."""
    known: dict[str, Any] = {}
    for column, value in row.items():
        field = ALIASES.get(column, column)
        if field in FIELDS and value not in (None, "") and (column == field or field not in row):
            known[field] = value
    for text in ("title", "description"):  # what the encoder would not read need not travel
        if isinstance(known.get(text), str):
            known[text] = known[text][:TEXT_CHARS_MAX]
    return msgspec.convert(known | {"tenant": tenant}, Item, strict=strict)


def _json_rows(file: TextIO) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line.encode("utf-8", "surrogateescape"))
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            yield number, f"not JSON: {error}"
            continue
        yield number, row if isinstance(row, dict) else "not a JSON object"


def _csv_rows(file: TextIO) -> Iterator[tuple[int, dict[str, Any] | str]]:
    reader = csv.DictReader(file, restkey="", strict=True)
    columns = [column.strip().lower().replace(" ", "_") for column in reader.fieldnames or ()]
    reader.fieldnames = columns
    if "item_id" not in {ALIASES.get(column, column) for column in columns}:
        found = ", ".join(columns) or "nothing"
        raise DatasetError(f"{file.name} needs a column item_id (or id, product_id, sku), has {found}")
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, f"not CSV: {error}"
            continue
        if any("\udc80" <= char <= "\udcff" for value in row.values() for char in value or ""):
            yield line, "not UTF-8"
        elif "" in row or None in row.values():
            yield line, f"the row has not the {len(columns)} columns of the header"
        else:
            yield line, row


def items(path: Path, tenant: str = "demo") -> Iterator[tuple[int, Item | str]]:
    """(line, item or what is wrong with the row) for every row; CSV when the name ends in .csv or .csv.gz, else JSON lines.
    Raises DatasetError."""
    is_csv = path.name.lower().endswith((".csv", ".csv.gz"))
    with opened(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for line, row in (_csv_rows if is_csv else _json_rows)(file):
            if isinstance(row, str):
                yield line, row
                continue
            try:
                yield line, _item(row, tenant, strict=not is_csv)
            except msgspec.ValidationError as error:
                yield line, str(error)


def publish(settings: Settings, path: Path, tenant: str = "demo", *,
            on_wait: Callable[[str], None] = lambda message: None,
            on_progress: Callable[[Summary], None] = lambda summary: None) -> Summary:
    """Publishes every good row and returns once all are acknowledged; raises DatasetError or the producer's errors."""
    topic, summary = topics.ITEMS.name(settings.kafka.topic_prefix), Summary()
    with Producer(settings.kafka, (topic,), on_wait=on_wait) as producer:
        for line, item in items(path, tenant):
            summary.rows += 1
            if isinstance(item, str):
                summary.failed += 1
                if len(summary.errors) < ERRORS_KEPT_MAX:
                    summary.errors.append(RowError(line, item))
            else:
                producer.send(topic, events.key(tenant, item.item_id), msgspec.json.encode(item))
                summary.published += 1
            if summary.rows % 1000 == 0:
                on_progress(summary)
    on_progress(summary)
    return summary
