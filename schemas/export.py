"""The JSON Schemas in `schemas/json/`, for readers and writers in other languages. Generated from the structs: change
those, then run `clickwake schemas`; a test fails while the files differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from schemas.catalog import Item
from schemas.dead_letter import DeadLetter
from schemas.events import Event
from schemas.opinions import Opinion, SatisfactionAlert
from schemas.outputs import (
    AdsRefusal,
    ChurnAlert,
    Complements,
    Decision,
    DeliveryRecord,
    Recommendation,
    Reminder,
    SegmentChange,
)
from schemas.release import ModelRelease

FOLDER = Path(__file__).parent / "json"
DIALECT = "https://json-schema.org/draft/2020-12/schema"

# File name → struct. Outputs name theirs in the CloudEvents header ce_dataschema.
EXPORTED: dict[str, Any] = {
    "event": Event, "item": Item, "recommendation": Recommendation, "complements": Complements, "decision": Decision,
    "segment-change": SegmentChange, "churn-alert": ChurnAlert, "reminder": Reminder, "ads-refusal": AdsRefusal,
    "delivery": DeliveryRecord, "opinion": Opinion, "satisfaction-alert": SatisfactionAlert, "dead-letter": DeadLetter,
    "model-release": ModelRelease,
}


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema of one exported struct. Unknown fields are allowed, as decoding allows them.

    >>> schema("event")["title"]
    'Event'
    """
    (top,), definitions = msgspec.json.schema_components((EXPORTED[name],), ref_template="#/$defs/{name}")
    root = EXPORTED[name].__name__
    assert top == {"$ref": f"#/$defs/{root}"}, "a struct is always a definition of its own"
    others = {key: value for key, value in definitions.items() if key != root}
    return {"$schema": DIALECT, "$id": f"schemas/json/{name}.json", **definitions[root], "$defs": others}


def text(name: str) -> str:
    """The file's content: the same bytes whenever the struct is the same."""
    return msgspec.json.format(msgspec.json.encode(schema(name), order="deterministic"), indent=2).decode() + "\n"


def differing(folder: Path = FOLDER) -> list[str]:
    """Files that are missing or not what the structs say."""
    return [f"{name}.json" for name in EXPORTED
            if not (folder / f"{name}.json").exists() or (folder / f"{name}.json").read_text(encoding="utf-8") != text(name)]


def write(folder: Path = FOLDER) -> list[str]:
    """Write what differs; returns the names of the files written."""
    changed = differing(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for file in changed:
        (folder / file).write_text(text(file.removesuffix(".json")), encoding="utf-8")
    return changed
