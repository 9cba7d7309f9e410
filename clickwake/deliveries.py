"""`clickwake deliveries`: the file checked, and what became of messages."""

from __future__ import annotations

import os

import msgspec
from rich.console import Console
from rich.table import Table

from clickwake.answering import refused, rows
from stream.delivery.rules import DeliveryError, DeliveryFile, Email, Webhook, load
from stream.settings import load as load_settings

RESULTS = """SELECT tenant, delivery, channel, status, count() AS messages, max(at) AS newest, anyLast(error) AS error
FROM deliveries FINAL GROUP BY tenant, delivery, channel, status ORDER BY tenant, delivery, status"""


def check(*, as_json: bool) -> int:
    """Whether the file can be used; 1 when not, with the reason. Secrets that this shell lacks are only said: the worker may
    have them."""
    path = load_settings().deliveries_file
    try:
        file = load(path)
    except DeliveryError as error:
        return refused(error, as_json=as_json)
    missing = sorted(name for name in _secrets(file) if not os.environ.get(name))
    if as_json:
        print(msgspec.json.encode({"ok": True, "channels": sorted(file.channels), "secrets_not_set_here": missing,
                                   "deliveries": [one.name for one in file.deliveries]}).decode())  # fmt: skip
        return 0
    console = Console()
    for one in file.deliveries:
        what = f"{one.about} {one.segment} {one.change}" if one.segment else one.about
        console.print(f"{one.name}: {what} → {one.channel}", highlight=False, markup=False)
    if missing:
        console.print(f"not set in this shell, the worker needs them: {', '.join(missing)}", style="yellow", highlight=False)
    return 0


def _secrets(file: DeliveryFile) -> set[str]:
    """Names of the variables that channels take their secrets from."""
    found = {one.secret_env for one in file.channels.values() if isinstance(one, Webhook)}
    return found | {one.password_env for one in file.channels.values() if isinstance(one, Email) and one.password_env}


def results(*, as_json: bool) -> int:
    """How many messages of each delivery have which status, and the last error."""
    (found,) = rows(load_settings().clickhouse, RESULTS)
    if as_json:
        print(msgspec.json.encode(found).decode())
        return 0
    if not found:
        Console().print(f"nothing went out yet; what goes where is written in {load_settings().deliveries_file}, see "
                        "docs/deliveries.md", highlight=False, soft_wrap=True)  # fmt: skip
        return 0
    table = Table("delivery", "channel", "status", "messages", "newest", "error", box=None, header_style="dim")
    for row in found:
        newest = f"{row['newest']:%Y-%m-%d %H:%M}"
        names = (row["delivery"], row["channel"], row["status"])
        table.add_row(*names, f"{row['messages']:,}", newest, row["error"][:60])
    Console().print(table)
    return 0
