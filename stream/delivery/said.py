"""What deliveries are about: to people's tools an alert, change or reminder of a user, to the shop's own people an alert
about an item or a brand. All of them go the same way; what differs is told here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import msgspec

from schemas.opinions import SatisfactionAlert
from schemas.outputs import ChurnAlert, DeliveryRecord, Reminder, SegmentChange

Said = ChurnAlert | SegmentChange | Reminder | SatisfactionAlert
AboutKind = Literal["churn-alert", "segment-change", "reminder", "satisfaction-alert"]
_MODELS_ALONE = ("features", "effects")  # of an alert: nobody but models reads them


class Kind(NamedTuple):
    """`ident`: the field that holds its id. `kept`: that of a `DeliveryRecord` which holds it while it waits. `order`: what
    never falls from one to the next of the same cause. `which`: what tells the causes of a subject apart; `state`: how one
    stands."""

    name: AboutKind
    ident: str
    kept: str
    order: str
    which: str | None = None
    state: str = "state"


KINDS: Mapping[type[Said], Kind] = MappingProxyType({
    ChurnAlert: Kind("churn-alert", "alert_id", "alert", "last_event_ts"),
    SegmentChange: Kind("segment-change", "change_id", "segment_change", "turn", "segment", "change"),
    Reminder: Kind("reminder", "reminder_id", "reminder", "last_bought_ts", "reminder_id"),
    SatisfactionAlert: Kind("satisfaction-alert", "alert_id", "satisfaction_alert", "number", "reason"),
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


def cause_of(said: Said) -> tuple[str, ...]:
    """What stays the same while one thing after another is said of it: that a user stays away or is back, is in a segment or
    is not, is to buy something or has; that a thing has fallen for some reason or is as before."""
    kind = KINDS[type(said)]
    return kind.name, subject_of(said), getattr(said, kind.which) if kind.which else ""


def ended_by(said: Said, later: Said) -> str:
    """How another, of the same cause, ends what was said, in words; empty where it says the same, or is an older one that is
    read again."""
    kind = KINDS[type(said)]
    now = getattr(later, kind.state)
    if now == getattr(said, kind.state) or getattr(later, kind.order) < getattr(said, kind.order):
        return ""
    return f"its cause is over: {now}"


def outlived(several: Iterable[Said]) -> list[tuple[Said, str]]:
    """Each, and how one of those behind it ends it, in words; empty where it still holds."""
    behind = defaultdict[tuple[str, ...], list[Said]](list)
    found = list[tuple[Said, str]]()
    for said in reversed(list(several)):
        later = behind[cause_of(said)]
        found.append((said, next(filter(None, (ended_by(said, one) for one in later)), "")))
        later.append(said)
    return found[::-1]


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
