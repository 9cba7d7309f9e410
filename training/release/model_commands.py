"""What `clickwake models …` does and prints: the registry, keys and signatures."""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from schemas.release import Manifest, Verdict
from stream import settings as settings_module
from stream.adapters.models import model_store, signing
from stream.adapters.models.model_store import BundleRefused
from stream.settings import Settings
from training.commands import history_of
from training.evaluation.comparison import cell
from training.evaluation.metrics import Interval
from training.history.live import Horizon
from training.printing import EXPECTED, fail, print_json
from training.release import release, verdicts
from training.release.release import NothingReleased
from training.release.watch import Watched

_errors = Console(stderr=True)


class Listed(msgspec.Struct, kw_only=True):
    """One bundle as it is shown."""

    manifest: Manifest
    signed_by: str | None  # id of the trusted key; None when unsigned, wrongly signed, or nobody is trusted
    unsigned_because: str = ""
    verdict: Verdict | None = None


def listing(as_json: bool) -> None:
    """List the registry, newest first, and mark the released bundle when Kafka answers."""
    settings = settings_module.load()
    try:
        found = _listed(settings)
    except EXPECTED as error:
        fail(error)
    try:
        now = release.current(settings)
        released, unknown = now.model_version if now else None, None
    except (ConnectionError, NothingReleased) as error:
        released, unknown = None, str(error)
    if as_json:
        shown = ("signed_by", "unsigned_because", "verdict")
        bundles = [msgspec.to_builtins(one.manifest) | {name: msgspec.to_builtins(getattr(one, name)) for name in shown}
                   for one in found]  # fmt: skip
        print_json({"released": released, "unknown_because": unknown, "bundles": bundles})
        return
    Console().print(_table(found, released, with_keys=bool(signing.trusted(settings.models))))
    for one in found:
        if one.verdict is not None and not one.verdict.released:
            Console().print(f"{one.manifest.model_version} is a candidate: {one.verdict.reason}", highlight=False)
    if unknown:
        _errors.print(f"which one is released is not known: {unknown}")


def _listed(settings: Settings) -> list[Listed]:
    keys = signing.trusted(settings.models)
    found = []
    for manifest in model_store.versions(settings.registry):
        one = Listed(manifest=manifest, signed_by=None, verdict=verdicts.read(settings.registry, manifest.model_version))
        if keys:
            uri = model_store.bundle_uri(settings.registry, manifest.model_version)
            try:
                raw = release.manifest_bytes(settings.registry, manifest.model_version)
                one.signed_by = model_store.check_signature(uri, raw, keys)
            except BundleRefused as error:
                one.unsigned_because = str(error)
        found.append(one)
    return found


def _table(found: list[Listed], released: str | None, with_keys: bool) -> Table:
    table = Table("bundle", "data until", "NDCG@10 all", "new", "parent", "state", *(["signed by"] if with_keys else []))
    for one in found:
        manifest = one.manifest
        kept = one.verdict is not None and not one.verdict.released
        state = "released" if manifest.model_version == released else "candidate" if kept else ""
        cells = [manifest.model_version, f"{manifest.data_to:%Y-%m-%d}", _metric(manifest, "all"), _metric(manifest, "new"),
                 manifest.parent or "–", state]
        table.add_row(*cells, *([one.signed_by or "nobody we trust"] if with_keys else []))
    return table


def _metric(manifest: Manifest, task: str) -> str:
    value = manifest.metrics.get(f"clickwake_{task}_ndcg_at_10")
    return "–" if value is None else f"{value:.4f}"


def keygen(out: Path | None, as_json: bool) -> None:
    """Make a pair of keys; the private one goes to a file that only its owner can read."""
    path = (out or settings_module.load().home / "keys" / "signing.key").absolute()
    try:
        public = signing.keygen(path)
    except FileExistsError:
        fail(FileExistsError(f"{path} exists: a key is never replaced; name another file with --out"))
    if as_json:
        print_json({"signing_key": str(path), "verify_key": public.text, "id": public.id})
        return
    Console().print(
        f"key {public.id}\nwhere models are trained:  CLICKWAKE_MODELS__SIGNING_KEY={path}\n"
        f"""on every worker:           CLICKWAKE_MODELS__VERIFY_KEYS='["{public.text}"]'""", soft_wrap=True, highlight=False,
    )


def sign(version: str, trust: bool, as_json: bool) -> None:
    """Sign a bundle and its text encoder with the present key."""
    try:
        key = release.sign_again(settings_module.load(), version, trust=trust)
    except EXPECTED as error:
        fail(error)
    print_json({"model_version": version, "signed_by": key.id}) if as_json else Console().print(f"signed by {key.id}")


def compare(version: str, other: str, source: str, dataset: tuple[str, Path] | None, tenant: str, as_json: bool) -> None:
    """Ask both bundles the same questions on the newest held-out days."""
    from training.evaluation import comparison
    from training.release import compare_bundles

    settings = settings_module.load()
    try:
        history = history_of(settings, source, dataset, None, None, tenant)
        found = compare_bundles.compare(settings, history, version, other, _errors.print)
    except EXPECTED as error:
        fail(error)
    if as_json:
        print_json(comparison.rounded(found))
        return
    for table in comparison.tables(found):
        Console().print(table)
    for what, until in found.settings.items():
        Console().print(f"{what} {until}", highlight=False)
    Console().print(f"▲ {version} is better than this one (95% interval of the paired difference), ▼ worse, = level")


def watch(tenant: str, horizon: Horizon, candidate: str | None, act: bool, as_json: bool) -> None:
    """Look at what the released bundle does live, and at what a candidate would have done."""
    from training.evaluation import comparison
    from training.release import shadow
    from training.release import watch as watching
    from training.release.compare_bundles import load, texts_for

    settings = settings_module.load()
    shadowed = None
    try:
        found = watching.watch(settings, tenant, horizon, act=act)
        if candidate is not None:
            history = history_of(settings, "clickhouse", None, None, None, tenant)
            current, other = load(settings, found.current), load(settings, candidate)
            known = texts_for(settings, history, {candidate: other, found.current: current}, _errors.print, running=True)
            shadowed = shadow.compare(settings, tenant, history, known, current, other, horizon, _errors.print)
    except EXPECTED as error:
        fail(error)
    if as_json:
        print_json({"watched": found, "shadow": None if shadowed is None else comparison.rounded(shadowed)})
        return
    _print_watched(found)
    for table in comparison.tables(shadowed) if shadowed is not None else []:
        Console().print(table)


def _print_watched(found: Watched) -> None:
    table = Table("bundle", "served", f"hit rate within {found.horizon}", "drift of its inputs (PSI)")
    for version in (one for one in (found.current, found.parent) if one is not None):
        hit = found.hit_rate.get(version)
        moved = ", ".join(f"{name} {value:.3f}" for name, value in found.drift.get(version, {}).items())
        label = version if version == found.current else f"{version} and before"
        table.add_row(label, str(found.served.get(version, 0)), "–" if hit is None else cell(Interval(*hit)), moved or "–")
    Console().print(table)
    for line in found.not_judged:
        Console().print(line, highlight=False)
    for line in found.left_band:
        Console().print(f"[red]left its band: {line}[/red]", highlight=False)
    if found.rolled_back_to:
        Console().print(f"rolled back to {found.rolled_back_to}")
