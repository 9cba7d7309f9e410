"""`clickwake segments`: rules checked before they run, sizes, and who was in a segment at any time."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from clickwake.answering import asking, refused, rows
from stream.adapters.models import model_store
from stream.core.segments.audience import NO_AUDIENCE, Audience
from stream.core.segments.segment_fields import FIELDS
from stream.core.segments.segment_rules import RulesError
from stream.segments import load
from stream.settings import Settings
from stream.settings import load as load_settings
from training.release import verdicts

SIZES = """SELECT tenant, segment, members, entered_1d, left_1d, changed_at FROM segment_sizes
WHERE {tenant:String} = '' OR tenant = {tenant:String}
ORDER BY tenant, segment"""
MEMBERS = """SELECT tenant, user_id, entered_at, values FROM segment_intervals
WHERE segment = {segment:String} AND entered_at <= {at:DateTime64(3, 'UTC')}
    AND (left_at IS NULL OR left_at > {at:DateTime64(3, 'UTC')}) AND ({tenant:String} = '' OR tenant = {tenant:String})
ORDER BY entered_at DESC, user_id LIMIT {limit:UInt32}"""

MEASURED = {  # what a release says of its clusters, training/clusters/division.py
    "silhouette": "silhouette {:.3f}",
    "structure": "{:+.3f} above a cloud without groups",
    "again": "a training that is not told the clusters before would agree with them by {:.2f}",
}


def check(path: Path | None, *, as_json: bool) -> int:
    """Whether a file of rules can be used; 1 when not, with the reason."""
    settings = load_settings()
    path = path or settings.segments_file
    version, known = release(settings)
    try:
        rules = load(path, known, version)
    except RulesError as error:
        code = refused(error, as_json=as_json)
        if not as_json:
            Console(stderr=True).print(f"Fields are {', '.join(FIELDS)}.", style="dim", highlight=False)
        return code
    names = {one.name for one in known.clusters}
    nobody = [rule.name for at, rule in enumerate(rules.rules)
              if at in rules.unknown or (rule.cluster and rule.cluster not in names)]  # fmt: skip
    never = rules.never()
    if as_json:
        print(msgspec.json.encode({"ok": True, "version": rules.version, "segments": rules.rules, "release": version or None,
                                   "nobody": nobody, "never": never,
                                   "kept": {what: sorted(names) for what, names in rules.kept._asdict().items()}}).decode())
        return 0
    table = Table(box=None, header_style="dim")
    for name in ("segment", "when", "description"):
        table.add_column(name)
    for rule in rules.rules:
        told = [f"cluster: {rule.cluster}"] if rule.cluster else []
        table.add_row(rule.name, ", ".join([*told, *([rule.when] if rule.when else [])]), rule.description)
    Console().print(table)
    if any(rules.kept):
        kept = "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in rules.kept._asdict().items() if names)
        Console().print(f"Kept with users for these rules, {kept}", style="dim", highlight=False, soft_wrap=True)
        if rules.kept.traits:
            Console().print("What was said before a rule was there counts from the next clickwake segments backfill on",
                            style="dim", highlight=False, soft_wrap=True)  # fmt: skip
    if nobody:
        Console().print(f"Nobody is in {', '.join(nobody)}: {version or 'no bundle of the registry'} does not know it; "
                        "see clickwake segments clusters", style="yellow", highlight=False, soft_wrap=True)  # fmt: skip
    if never:
        Console().print(f"Nobody can ever be in {', '.join(never)}: it asks for more than is kept of a user; see "
                        "docs/segments.md, The limit", style="yellow", highlight=False, soft_wrap=True)  # fmt: skip
    return 0


def clusters(*, as_json: bool) -> int:
    """The discovered clusters of the newest bundle that was not kept back."""
    version, known = release(load_settings())
    if as_json:
        told = [{name: getattr(one, name) for name in ("id", "name", "users", "terms", "items")} for one in known.clusters]
        print(msgspec.json.encode({"release": version or None, "users": known.users, "clusters": told,
                                   "measured": known.measured}).decode())  # fmt: skip
        return 0
    if not known.clusters:
        Console().print(f"{version or 'The registry'} knows no clusters; clickwake train finds them among enough users",
                        highlight=False)  # fmt: skip
        return 0
    figures = "; ".join(words.format(known.measured[name]) for name, words in MEASURED.items() if name in known.measured)
    table = Table(box=None, header_style="dim", caption=f"{version}, {known.users} users" + (figures and f"; {figures}"))
    for name in ("id", "cluster", "users", "words", "nearest items"):
        table.add_column(name)
    for one in known.clusters:
        table.add_row(one.id, one.name, str(one.users), ", ".join(one.terms), ", ".join(one.items))
    Console().print(table)
    return 0


def release(settings: Settings) -> tuple[str, Audience]:
    """`served`; nothing, and why, where it cannot be read."""
    try:
        return served(settings)
    except model_store.BundleRefused as error:
        Console(stderr=True).print(str(error), style="yellow", markup=False, highlight=False, soft_wrap=True)
        return "", NO_AUDIENCE


def served(settings: Settings) -> tuple[str, Audience]:
    """The newest bundle that is no candidate, and what it says of everybody. Raises BundleRefused."""
    for manifest in model_store.versions(settings.registry):
        verdict = verdicts.read(settings.registry, manifest.model_version)
        if verdict is None or verdict.released:
            return manifest.model_version, model_store.audience_of(settings.registry, manifest)
    return "", NO_AUDIENCE


@asking
def sizes(tenant: str, *, as_json: bool) -> int:
    """How many are in each segment now, and how that moves; of every tenant where none is named."""
    return _show(SIZES, {"tenant": tenant}, as_json=as_json, empty="no segment has members yet; rules go into "
                 f"{load_settings().segments_file}, see docs/segments.md")  # fmt: skip


@asking
def members(segment: str, tenant: str, at: datetime | None, limit: int, *, as_json: bool) -> int:
    """Who is in a segment, or was at a time; of every tenant where none is named."""
    when = (at.replace(tzinfo=UTC) if at is not None and at.tzinfo is None else at) or datetime.now(UTC)
    return _show(MEMBERS, {"segment": segment, "tenant": tenant, "at": when, "limit": limit}, as_json=as_json,
                 empty=f"nobody was in {segment!r} at {when:%Y-%m-%d %H:%M} UTC")  # fmt: skip


def _show(sql: str, parameters: dict[str, Any], *, as_json: bool, empty: str) -> int:
    (found,) = rows(load_settings().clickhouse, sql, parameters=parameters)
    if as_json:
        print(msgspec.json.encode(found).decode())
        return 0
    if not found:
        Console().print(empty, highlight=False, soft_wrap=True)
        return 0
    table = Table(box=None, header_style="dim")
    for name in found[0]:
        table.add_column(name.replace("_", " "))
    for row in found:
        table.add_row(*(f"{value:%Y-%m-%d %H:%M:%S}" if isinstance(value, datetime) else
                        ", ".join(f"{name} {number:g}" for name, number in value.items()) if isinstance(value, dict) else
                        str(value) for value in row.values()))  # fmt: skip
    Console().print(table)
    return 0
