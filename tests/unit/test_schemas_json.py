"""The exported JSON Schemas are those of the structs, and what the structs write passes them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from typer.testing import CliRunner

from clickwake.cli import app
from schemas import export
from schemas.catalog import Item
from schemas.dead_letter import DeadLetter, Failure, Message, Source
from schemas.events import Event, Product, Properties
from schemas.opinions import Aspect, Opinion, Quote, SatisfactionAlert
from schemas.outputs import (
    AdsRefusal,
    ChurnAlert,
    Complements,
    Decision,
    DeliveryRecord,
    Reason,
    Recommendation,
    RecommendedItem,
    Reminder,
    SegmentChange,
)
from schemas.release import ModelRelease

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SAMPLES: dict[str, Any] = {
    "event": Event(message_id="m", type="track", timestamp=AT, tenant="shop", user_id="u", event="Order Completed",
                   properties=Properties(products=(Product(product_id="p", price=1.5),))),
    "item": Item(item_id="i", tenant="shop", title="Red mug", price=3.0, updated_at=AT),
    "recommendation": Recommendation(
        recommendation_id="r", tenant="shop", user_id="u", as_of_event_id="m", as_of_ts=AT, model_version="v",
        items=(RecommendedItem(item_id="i", score=1.0, source="rules",
                               reasons=(Reason(event_id="m", item_id="p", share=0.5),)),)),
    "complements": Complements(
        recommendation_id="r", tenant="shop", user_id="u", basket=("p",), as_of_event_id="m", as_of_ts=AT, model_version="v",
        items=(RecommendedItem(item_id="i", score=1.0, source="complements",
                               reasons=(Reason(event_id="", item_id="p", share=1.0),)),)),
    "decision": Decision(
        recommendation_id="r", tenant="shop", user_id="u", scenario="popular", items=(), candidates=3, as_of_event_id="",
        as_of_ts=None, served_at=AT, model_version="v", request={"n": "3"}),
    "segment-change": SegmentChange(
        change_id="s", tenant="shop", user_id="u", segment="buyers", change="entered", number=1, values={"orders": 1.0},
        as_of_event_id="m", as_of_ts=AT, rules_version="r", model_version="v"),
    "reminder": Reminder(
        reminder_id="n", tenant="shop", user_id="u", state="due", item_id="i", category="", last_bought_ts=AT,
        interval_days=30.0, window_from=AT, window_to=AT, probability=0.4, reasons=("r",), as_of_ts=AT, model_version="v"),
    "ads-refusal": AdsRefusal(tenant="shop", user_id="u", stated_at=AT, assumed=True),
    "delivery": DeliveryRecord(
        delivery_id="d", tenant="shop", user_id="u", delivery="save", channel="crm", about_kind="churn-alert",
        about_id="a", status="sent", at=AT),
    "churn-alert": ChurnAlert(alert_id="a", tenant="shop", user_id="u", state="raised", probability=0.9, horizon_days=14,
                              interval=(0.8, 0.95), reasons=("silent",), last_event_ts=AT, as_of_ts=AT, model_version="v"),
    "opinion": Opinion(
        opinion_id="o1", tenant="shop", user_id="u1", event_id="m1", source="review", lane="live", said_at=AT,
        item_id="sku-1", brand="Clay", language="en", satisfaction=0.25, stars=2.0, stars_read=1.75, p_satisfied=0.125,
        aspects=(Aspect(aspect="quality", words=("handle",), sentence="The handle broke.", p_satisfied=0.0625),),
        telling="The handle broke.", model_version="v1"),
    "satisfaction-alert": SatisfactionAlert(
        alert_id="a1", tenant="shop", about="brand", name="Clay", state="raised", number=1, changed_at=AT, as_of_ts=AT,
        before=0.75, after=0.25, opinions_before=40, opinions_after=9, opinions_per_false_alarm=1000,
        evidence=(Quote(opinion_id="o1", sentence="The handle broke.", satisfaction=0.25, said_at=AT),)),
    "dead-letter": DeadLetter(
        dead_letter_id="d", tenant="shop", kind="undecodable", payload=b"{", payload_bytes=1, first_seen=AT,
        failure=Failure(timestamp=AT, messages=(Message(path="", keyword="json", message="cut off"),)),
        source=Source(topic="t", partition=0, offset=7)),
    "model-release": ModelRelease(model_version="v", uri="v", manifest_sha256="0" * 64, released_at=AT),
}


def test_the_files_are_what_the_structs_say() -> None:
    assert export.differing() == [], "run `clickwake schemas`"
    assert {path.stem for path in export.FOLDER.glob("*.json")} == set(export.EXPORTED)


@pytest.mark.parametrize("name", sorted(export.EXPORTED))
def test_what_a_struct_writes_passes_its_schema(name: str) -> None:
    schema = json.loads((export.FOLDER / f"{name}.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    document = json.loads(msgspec.json.encode(SAMPLES[name]))
    validator.validate(document)
    validator.validate({**document, "field_of_a_later_version": 1})
    for required in schema["required"]:
        assert not validator.is_valid({key: value for key, value in document.items() if key != required}), required


def test_drift_is_found_and_the_command_mends_it(tmp_path: Path) -> None:
    assert len(export.write(tmp_path)) == len(export.EXPORTED)
    (tmp_path / "event.json").write_text("{}\n")
    (tmp_path / "item.json").unlink()
    run = CliRunner()
    checked = run.invoke(app, ["schemas", "--check", "--json", "--out", str(tmp_path)])
    assert checked.exit_code == 1
    assert json.loads(checked.output)["differ"] == ["event.json", "item.json"]
    assert run.invoke(app, ["schemas", "--out", str(tmp_path)]).exit_code == 0
    assert run.invoke(app, ["schemas", "--check", "--out", str(tmp_path)]).exit_code == 0
