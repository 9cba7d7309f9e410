"""`clickwake erase`: ask for a user to be forgotten, wait for the receipt, and look whether anything is left."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from producers.erasures import listed, polled, reading
from producers.kafka import KafkaUnavailable, NotAcknowledged, Producer
from schemas import topics
from schemas.erasure import Erased, Erasure, Receipt, subject
from schemas.events import key
from stream.adapters.models import signing
from stream.erasure import search
from stream.settings import Settings, load

ASK_AGAIN = ("something is left: ask again with `clickwake erase`; where ids are pseudonyms, with `--as-is` for what is "
             "under the id itself. What another's event says of the id stays (docs/privacy.md, Not there)")  # fmt: skip
EXIT_LEFT = 1  # something is left, or the receipt did not come in time
_errors = Console(stderr=True)


def request(settings: Settings, tenant: str, users: Sequence[str], *, suppress: bool, lift: bool) -> list[Erasure]:
    """Put requests on the topic; returns once the broker has them. To delete what a suppressed user did until now lifts no
    suppression. Raises KafkaUnavailable, NotAcknowledged."""
    name = topics.ERASURES.name(settings.kafka.topic_prefix)
    with Producer(settings.kafka, [name]) as producer:
        stays = Erased() if suppress or lift else listed(settings)
        made = [Erasure(erasure_id=str(uuid.uuid4()), tenant=tenant, requested_at=datetime.now(UTC),
                        suppress=suppress or stays.suppresses(key(tenant, user)), user_id=None if lift else user)
                for user in users]  # fmt: skip
        for user, one in zip(users, made, strict=True):
            producer.send(name, subject(key(tenant, user)), msgspec.json.encode(one))
    return made


def await_receipts(settings: Settings, asked: Sequence[Erasure], timeout_s: float) -> list[Erasure]:
    """The requests as the worker wrote them at the end; only those that were done in time. Raises KafkaUnavailable."""
    deadline, waiting, done = time.monotonic() + timeout_s, {one.erasure_id for one in asked}, list[Erasure]()
    with reading(settings) as consumer:
        while waiting and time.monotonic() < deadline:
            for _, found in polled(consumer):
                if found is not None and found.erasure_id in waiting and found.receipt is not None:
                    waiting.remove(found.erasure_id)
                    done.append(found)
    return done


def signed_by(settings: Settings, done: Erasure) -> str:
    """What to say of a receipt's signature. Raises SignatureRefused where a key is set here, and none such signed it."""
    keys = signing.trusted(settings.models)
    if not done.signature:
        nobody = "NOT signed: the erasure worker has no CLICKWAKE_MODELS__SIGNING_KEY, so this shows to nobody who wrote it"
        if keys:
            raise signing.SignatureRefused(f"the receipt of erasure {done.erasure_id} is {nobody}")
        return nobody
    if not keys:
        return "signed, which was not checked: no key is set here (CLICKWAKE_MODELS__VERIFY_KEYS)"
    assert done.receipt is not None, "an erasure that is done has one"
    return f"signed by key {signing.check(done.receipt.encode(), done.signature.encode(), keys, signing.RECEIPT).id}"


def run(tenant: str, users: Sequence[str], *, suppress: bool, lift: bool, timeout_s: float, as_json: bool) -> int:
    """Exit code 0 once everything is done, `EXIT_LEFT` when it goes on in the background."""
    settings = load()
    try:
        asked = request(settings, tenant, users, suppress=suppress, lift=lift)
        if lift:
            typer.echo(msgspec.json.encode(asked).decode() if as_json else "lifted: what the user does from now on is taken")
            return 0
        with _errors.status(f"erasing: {', '.join(one.erasure_id for one in asked)}"):
            done = await_receipts(settings, asked, timeout_s)
        signers = [signed_by(settings, one) for one in done]
    except (KafkaUnavailable, NotAcknowledged, signing.SignatureRefused) as error:
        _errors.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return EXIT_LEFT
    if as_json:
        typer.echo(msgspec.json.encode(done).decode())
    else:
        for one, signer in zip(done, signers, strict=True):
            _show(msgspec.json.decode(one.receipt or "", type=Receipt), signer)
    if len(done) == len(asked):
        return 0
    _errors.print(
        f"not done after {timeout_s:.0f} s. The request stands and goes on by itself; the log of the erasure worker says "
        "what it waits for (clickwake up runs one; python -m workers.erasure)", highlight=False, soft_wrap=True,
    )  # fmt: skip
    return EXIT_LEFT


def _show(receipt: Receipt, signer: str) -> None:
    table = Table(box=None, header_style="dim")
    for name in ("place", "records", "what was done", "seen", "last copies gone by"):
        table.add_column(name)
    for one in receipt.done:
        gone = "" if one.until is None else one.until.strftime("%Y-%m-%d")
        table.add_row(one.place, str(one.records or ""), one.did, "yes" if one.seen else "no", gone)
    console = Console()
    console.print(table)
    took = (receipt.done_at - receipt.requested_at).total_seconds()
    console.print(f"erasure {receipt.erasure_id} · {len(receipt.subjects)} ids · {took:.1f} s, {signer}", highlight=False)


def verify(tenant: str, ids: Sequence[str], *, as_json: bool) -> int:
    """Search everything that is reached from here, and say what is not; exit code `EXIT_LEFT` if something is left that does
    not go by itself."""
    settings = load()
    with _errors.status("searching topics, tables and files"):
        found = list(search.everywhere(settings, tenant, ids))
    left, beyond = [one for one in found if one.until is None], search.not_searched(settings)
    if as_json:
        typer.echo(msgspec.json.encode({"clean": not left, "found": found, "not_searched": beyond}).decode())
    else:
        for one in found:
            gone = f"gone by {one.until:%Y-%m-%d}" if one.until else "LEFT"
            typer.echo(f"{one.place}: {one.records} records, {gone}")
        typer.echo("nothing else is left in the topics, tables and files that were searched" if not left else ASK_AGAIN)
        for other in beyond:
            typer.echo(f"not searched: {other.place}: {other.why}")
    return EXIT_LEFT if left else 0
