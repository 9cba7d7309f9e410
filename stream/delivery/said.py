"""What deliveries are about: to people's tools an alert, change or reminder of a user, to the shop's own people an alert
about an item or a brand. All of them go the same way; what differs is told here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import msgspec

from schemas.opinions import SatisfactionAlert
from schemas.outputs import ChurnAlert, DeliveryRecord, Reminder, SegmentChange

Said = ChurnAlert | SegmentChange | Reminder | SatisfactionAlert
AboutKind = Literal["churn-alert", "segment-change", "reminder", "satisfaction-alert"]
_MODELS_ALONE = ("features", "effects")  # of an alert: nobody but models reads them


class Kind(NamedTuple):
    """`ident`: the field that holds its id. `kept`: that of a `DeliveryRecord` which holds it while it waits."""

    name: AboutKind
    ident: str
    kept: str


KINDS: Mapping[type[Said], Kind] = MappingProxyType({
    ChurnAlert: Kind("churn-alert", "alert_id", "alert"),
    SegmentChange: Kind("segment-change", "change_id", "segment_change"),
    Reminder: Kind("reminder", "reminder_id", "reminder"),
    SatisfactionAlert: Kind("satisfaction-alert", "alert_id", "satisfaction_alert"),
})


def id_of(said: Said) -> str:
    """The id of what was said."""
    return str(getattr(said, KINDS[type(said)].ident))


def user_of(said: Said) -> str:
    """Whom it is about; empty where it is about a thing."""
    return "" if isinstance(said, SatisfactionAlert) else said.user_id


def thing_of(said: Said) -> str:
    """What it is about, `brand/Clay` or `item/sku-1`; empty where it is about a user."""
    return f"{said.about}/{said.name}" if isinstance(said, SatisfactionAlert) else ""


def subject_of(said: Said) -> str:
    """Whom or what it is about: `tenant/user` or `tenant/thing`."""
    return f"{said.tenant}/{user_of(said) or thing_of(said)}"


def put_off(record: DeliveryRecord, said: Said) -> DeliveryRecord:
    """The record with what was said, for `waiting` to find."""
    return msgspec.structs.replace(record, **{KINDS[type(said)].kept: said})


def waiting(record: DeliveryRecord) -> Said | None:
    """What a record holds while it waits."""
    return record.alert or record.segment_change or record.reminder or record.satisfaction_alert


def details(said: Said, record: DeliveryRecord) -> dict[str, Any]:
    """What is said, without what only models read; with what it is expected to bring."""
    found = {name: value for name, value in msgspec.to_builtins(said).items() if name not in _MODELS_ALONE}
    if record.expected is not None and record.expected.gain is not None:
        found["expected_gain"] = round(record.expected.gain, 4)
    return found
