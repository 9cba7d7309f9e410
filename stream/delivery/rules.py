"""What goes where: a file of channels and deliveries, checked when it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import time
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

DAYS_KNOWN = 30  # as long as the log of deliveries is kept
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9 _-]{0,63}$")]
LocalTime = Annotated[time, msgspec.Meta(tz=False)]  # of the `timezone` that is named beside it


class DeliveryError(ValueError):
    """The file cannot be used; the message says which part and why."""


class Webhook(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="webhook", tag_field="type"):
    """A POST of JSON, signed as standardwebhooks.com says with the secret in the environment variable `secret_env`."""

    url: str
    secret_env: str
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=60)] = 10.0


class Email(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="email", tag_field="type"):
    """Mail to a team's address: users' addresses are not kept here. The password is in the variable `password_env`."""

    host: str
    to: str
    sender: str
    port: int = 587
    user: str | None = None
    password_env: str | None = None
    tls: bool = True


class Csv(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="csv", tag_field="type"):
    """A row in a file a day, `<folder>/<delivery>-YYYY-MM-DD.csv`: for tools that fetch files."""

    folder: str


Channel = Webhook | Email | Csv


class Cap(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """So many `messages` to one person within any so many `days`, over all deliveries of advertising, or over those by some
    `channels`. `kept`: so many of them are for deliveries of high priority alone."""

    messages: Annotated[int, msgspec.Meta(ge=1)]
    days: Annotated[float, msgspec.Meta(gt=0, le=DAYS_KNOWN)]
    channels: tuple[str, ...] = ()
    kept: Annotated[int, msgspec.Meta(ge=0)] = 0

    def __str__(self) -> str:
        """In words.

        >>> str(Cap(messages=3, days=7, channels=("crm", "files")))
        'at most 3 messages to a person in 7 days by crm and files'
        """
        by = f" by {' and '.join(self.channels)}" if self.channels else ""
        messages, days = several(self.messages, "message"), several(self.days, "day")
        return f"at most {messages} to a person in {days}{by}"

    def holds(self, delivery: Delivery) -> bool:
        """Whether it is about what this delivery sends."""
        return delivery.advertises and (not self.channels or delivery.channel in self.channels)


def several(number: float, what: str) -> str:
    """A number of things.

    >>> several(1, "day"), several(0.5, "day")
    ('1 day', '0.5 days')
    """
    return f"{number:g} {what}" if number == 1 else f"{number:g} {what}s"


class Gain(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whom an alert is sent of: those whose expected gain, uplift × value − `cost`, is above `above`, once a model knows of
    the delivery; until then everybody. Money is in the shop's currency. `value`: of a return; with `order_share`, for who
    has ordered, that share of their own mean order instead. `explore`: the share of the others who are sent it all the same,
    so that the next model learns of them too."""

    value: Annotated[float, msgspec.Meta(ge=0)]
    order_share: Annotated[float, msgspec.Meta(gt=0)] | None = None
    cost: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    above: float = 0.0
    explore: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.1


class Delivery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One stream of messages. `about`: churn (an alert raised), reminder (a purchase is due) or segment (`change` of
    `segment`); to the shop's own people satisfaction (an item or a brand, as `of` says, has fallen, by `fall_min` at least,
    or has more support tickets than usual; `reason`: one of both alone).
    `tenant`: whose users, items and brands; every tenant's without.
    `purpose`: only a service goes to users who refuse advertising, and whatever the `caps` of the file say. `priority`: what
    is high goes first, and may use what caps keep for such. `probability_min`: of the alert or reminder. `cap_days`: nobody,
    and of no item or brand, twice within so many days, by this delivery. `quiet`: between these times of `timezone` nothing
    goes out, it waits. `holdout`: a share of users who would have got it and do not, for comparison. `gain`: only where it
    pays."""

    name: Name
    channel: str
    about: Literal["churn", "segment", "reminder", "satisfaction"]
    purpose: Literal["ads", "service"] = "ads"
    priority: Literal["high", "normal"] = "normal"
    of: Literal["item", "brand"] | None = None
    fall_min: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    reason: Literal["opinions", "tickets"] | None = None
    segment: str | None = None
    change: Literal["entered", "left"] = "entered"
    probability_min: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    cap_days: Annotated[float, msgspec.Meta(ge=0, le=DAYS_KNOWN)] = 7.0
    quiet: tuple[LocalTime, LocalTime] | None = None
    timezone: str = "UTC"
    holdout: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    tenant: str | None = None
    gain: Gain | None = None

    @property
    def advertises(self) -> bool:
        """Whether it is advertising to users, which `caps` are about."""
        return self.purpose == "ads" and self.about != "satisfaction"

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)


class DeliveryFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`caps`: how much one person gets of all deliveries of advertising together. `suppress`: users, `tenant/user`, who get
    nothing, and are in nobody's comparison."""

    channels: dict[Name, Channel] = {}
    caps: tuple[Cap, ...] = ()
    deliveries: tuple[Delivery, ...] = ()
    suppress: tuple[str, ...] = ()

    def named(self, name: str) -> Delivery | None:
        """The delivery of that name; None where there is none, or none any more."""
        return next((one for one in self.deliveries if one.name == name), None)

    def under(self, names: Callable[[str, str], Iterable[str]]) -> DeliveryFile:
        """With those of `suppress` by each of the `names` that tenant and user give.

        >>> DeliveryFile(suppress=("shop/u1",)).under(lambda tenant, user: [f"pn_{user}", user]).suppress
        ('shop/pn_u1', 'shop/u1')
        """
        whose = (one.partition("/") for one in self.suppress)
        named = tuple(f"{tenant}/{name}" for tenant, _, user in whose for name in names(tenant, user))
        return msgspec.structs.replace(self, suppress=named)


def load(path: Path) -> DeliveryFile:
    """Raises DeliveryError."""
    try:
        found = msgspec.yaml.decode(path.read_bytes(), type=DeliveryFile)
    except (OSError, msgspec.MsgspecError) as error:
        raise DeliveryError(f"{path}: {error}") from error
    for name, channel in found.channels.items():
        if isinstance(channel, Email) and channel.user is not None and channel.password_env is None:
            raise DeliveryError(f"{path}: channel {name!r} has a `user` and no `password_env`, the variable of the password")
    names = set[str]()
    for one in found.deliveries:
        if one.name in names:
            raise DeliveryError(f"{path}: there are two deliveries named {one.name!r}")
        names.add(one.name)
        _check_channels(f"{path}: delivery {one.name!r}", (one.channel,), found)
        _check(f"{path}: delivery {one.name!r}", one)
    for number, cap in enumerate(found.caps, 1):
        _check_cap(f"{path}: cap {number}, {cap}", cap, found)
    for entry in found.suppress:
        tenant, _, user = entry.partition("/")
        if not tenant or not user:
            raise DeliveryError(f"{path}: `suppress` has {entry!r}: write tenant/user, such as demo/u17")
    return found


def _check_channels(where: str, names: tuple[str, ...], file: DeliveryFile) -> None:
    for name in names:
        if name not in file.channels:
            raise DeliveryError(f"{where} names channel {name!r}; there are {', '.join(sorted(file.channels)) or 'none'}")


def _check_cap(where: str, cap: Cap, file: DeliveryFile) -> None:
    """Whether it can do what it says. Raises DeliveryError."""
    _check_channels(where, cap.channels, file)
    if cap.kept >= cap.messages:
        raise DeliveryError(f"{where}: it keeps {cap.kept}, so nothing but what has `priority: high` would ever go out; "
                            "`kept` is to be less than `messages`")  # fmt: skip
    if cap.kept and not any(one.priority == "high" and cap.holds(one) for one in file.deliveries):
        raise DeliveryError(f"{where}: it keeps {cap.kept} for what has `priority: high`, and no delivery that it is about "
                            "says so")  # fmt: skip


def _check(where: str, one: Delivery) -> None:
    """What goes with what. Raises DeliveryError."""
    if (one.about == "segment") != (one.segment is not None):
        raise DeliveryError(f"{where}: `segment` goes with `about: segment`, and only with it")
    if one.gain is not None and (one.about != "churn" or not 0 < one.holdout <= 1 - one.gain.explore):
        raise DeliveryError(f"{where}: `gain` goes with `about: churn` and a `holdout` above 0, by which it is learned whom "
                            "the message persuades; with `explore` at most 1")  # fmt: skip
    if one.about == "satisfaction" and (one.holdout or one.probability_min):
        raise DeliveryError(f"{where}: it tells the shop's own people of items and brands: `holdout` and `probability_min` "
                            "are about users; leave them out")  # fmt: skip
    if one.priority != "normal" and not one.advertises:
        raise DeliveryError(f"{where}: `priority` is about caps, and those of advertising to users; what this one sends is "
                            "never held back by them: leave it out")  # fmt: skip
    if one.about != "satisfaction" and (one.of is not None or one.fall_min or one.reason is not None):
        raise DeliveryError(f"{where}: `of`, `fall_min` and `reason` go with `about: satisfaction`, and only with it")
    if one.reason == "tickets" and one.fall_min:
        raise DeliveryError(f"{where}: `fall_min` is about opinions, this one is about tickets alone: leave it out")
    try:
        _ = one.zone
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise DeliveryError(f"{where}: no time zone {one.timezone!r}") from error
