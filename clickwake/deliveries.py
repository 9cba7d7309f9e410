"""`clickwake deliveries`: the file checked, and what became of messages."""

from __future__ import annotations

import os
from collections.abc import Iterable

import msgspec
from rich.console import Console
from rich.table import Table

from clickwake.answering import asking, refused, rows
from stream.delivery.rules import Cap, Delivery, DeliveryError, DeliveryFile, Email, Webhook, load
from stream.settings import Settings
from stream.settings import load as load_settings

RESULTS = """SELECT tenant, delivery, channel, status, if(status IN ('capped', 'suppressed'), reason, '') AS why,
    count() AS messages, max(at) AS newest, anyLast(error) AS error
FROM deliveries FINAL GROUP BY tenant, delivery, channel, status, why ORDER BY tenant, delivery, status, why"""


def check(*, as_json: bool) -> int:
    """Whether the file can be used; 1 when not, with the reason. Secrets that this shell lacks are only said: the worker may
    have them. So is what goes out for each of several tenants, whose users are not the business of one channel."""
    settings = load_settings()
    try:
        file = load(settings.deliveries_file)
    except DeliveryError as error:
        return refused(error, as_json=as_json)
    missing = sorted(name for name in _secrets(file) if not os.environ.get(name))
    several = _several_tenants(settings)
    for_all = [one.name for one in file.deliveries if one.tenant is None] if several else []
    if as_json:
        print(msgspec.json.encode({"ok": True, "channels": sorted(file.channels), "secrets_not_set_here": missing,
                                   "deliveries": [one.name for one in file.deliveries], "caps": file.caps,
                                   "tenants": {one.name: one.tenant for one in file.deliveries},
                                   "of_several_tenants": for_all,
                                   "capped": [one.name for one in file.deliveries if one.advertises]}).decode())  # fmt: skip
        return 0
    console = Console()
    for one in file.deliveries:
        what = f"{one.about} {one.segment} {one.change}" if one.segment else one.about
        whose = "every tenant" if one.tenant is None else one.tenant
        console.print(f"{one.name}: {whose}'s {what} → {one.channel}", highlight=False, markup=False)
    for cap in file.caps:
        console.print(_told(cap, file), highlight=False, markup=False, soft_wrap=True)
    if for_all:
        console.print(f"about each of {', '.join(several)}, to the same channel: {', '.join(for_all)}; say whose: `tenant`",
                      style="yellow", markup=False, highlight=False, soft_wrap=True)  # fmt: skip
    if missing:
        console.print(f"not set in this shell, the worker needs them: {', '.join(missing)}", style="yellow", highlight=False)
    return 0


def _several_tenants(settings: Settings) -> list[str]:
    """Who has keys here, where several do. Each kind of keys by itself: one that nobody set is the demo's."""
    kinds = (settings.collector.write_keys, settings.collector.admin_keys, settings.api.read_keys)
    return max((sorted(one) for one in kinds if len(one) > 1), key=len, default=[])


def _told(cap: Cap, file: DeliveryFile) -> str:
    """A cap, and which deliveries it is about."""
    about = [one for one in file.deliveries if cap.holds(one)]
    kept = f", {cap.kept} of them kept for {_names(one for one in about if one.priority == 'high')}" if cap.kept else ""
    return f"{cap}{kept}: {_names(about) or 'no delivery yet'}"


def _names(deliveries: Iterable[Delivery]) -> str:
    return ", ".join(one.name for one in deliveries)


def _secrets(file: DeliveryFile) -> set[str]:
    """Names of the variables that channels take their secrets from."""
    found = {one.secret_env for one in file.channels.values() if isinstance(one, Webhook)}
    return found | {one.password_env for one in file.channels.values() if isinstance(one, Email) and one.password_env}


@asking
def results(*, as_json: bool) -> int:
    """How many messages of each delivery have which status, and why: the cap, what they were suppressed for, the last
    error."""
    (found,) = rows(load_settings().clickhouse, RESULTS)
    if as_json:
        print(msgspec.json.encode(found).decode())
        return 0
    if not found:
        Console().print(f"nothing went out yet; what goes where is written in {load_settings().deliveries_file}, see "
                        "docs/deliveries.md", highlight=False, soft_wrap=True)  # fmt: skip
        return 0
    table = Table("tenant", "delivery", "channel", "status", "messages", "newest", "why", box=None, header_style="dim")
    for row in found:
        newest = f"{row['newest']:%Y-%m-%d %H:%M}"
        names = (row["tenant"], row["delivery"], row["channel"], row["status"])
        table.add_row(*names, f"{row['messages']:,}", newest, row["why"] or row["error"][:60])
    Console().print(table)
    return 0
