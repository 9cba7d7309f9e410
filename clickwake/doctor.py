"""`clickwake doctor`: what is here, what is missing, and what to do about each."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Literal

import msgspec
from rich.console import Console
from rich.markup import escape

from clickwake.local import broker, kafka_jars, process, up
from clickwake.local.clickhouse import launch
from stream.http import keys
from stream.settings import LOOPBACK, Api, Collector, Settings, load
from stream.urls import without_userinfo
from stream.wrong_settings import variable

PYTHON_MIN = (3, 11)
Level = Literal["ok", "warning", "problem"]
_MARK = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "problem": "[red]✗[/]"}


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One line; `do` is empty when there is nothing to do."""

    name: str
    level: Level
    found: str
    do: str = ""


def run(*, as_json: bool) -> int:
    """Exits with 1 when there is a problem; warnings do not count."""
    checks = []
    console = Console()
    for check in examine(load()):
        checks.append(check)
        if not as_json:
            console.print(f"{_MARK[check.level]} {check.name:<14} {escape(check.found)}", highlight=False, soft_wrap=True)
            if check.do:
                console.print(f"  {'':<14} → {escape(check.do)}", highlight=False, soft_wrap=True)
    if as_json:
        print(msgspec.json.encode(checks).decode())
    return 1 if any(check.level == "problem" for check in checks) else 0


def examine(settings: Settings) -> Iterator[Check]:
    own_kafka = "bootstrap_servers" not in Settings(home=settings.home).kafka.model_fields_set
    own_clickhouse = "host" not in Settings(home=settings.home).clickhouse.model_fields_set
    yield _python()
    if own_kafka:
        yield _java()
        yield _jars(settings)
    if own_clickhouse:
        yield _engine()
    yield _disk(settings)
    status = up.read_status(settings.home.absolute())
    yield _supervisor(settings, running=status is not None)
    if status is None:
        yield from _ports(settings, own_kafka=own_kafka, own_clickhouse=own_clickhouse)
    yield _kafka(settings, expected=status is not None or not own_kafka)
    yield _clickhouse(settings, expected=status is not None or not own_clickhouse)
    yield _models(settings)
    yield _opinions(settings)
    yield _privacy(settings)
    yield from _unprotected(settings)


def _python() -> Check:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    good = sys.version_info[:2] >= PYTHON_MIN
    return Check(name="python", level="ok" if good else "problem", found=found,
                 do="" if good else f"install Python {'.'.join(map(str, PYTHON_MIN))} or newer")


def _java() -> Check:
    try:
        java = broker.find_java()
    except process.StartError as error:
        return Check(name="java", level="problem", found="not found", do=str(error))
    return Check(name="java", level="ok", found=f"{java.version} at {java.path}")


def _jars(settings: Settings) -> Check:
    missing = kafka_jars.missing(settings.home)
    total = len(kafka_jars.read_lock())
    name = f"Kafka {kafka_jars.KAFKA_VERSION}"
    if missing:
        return Check(name="jars", level="warning", found=f"{name}: {len(missing)} of {total} jars are missing or damaged",
                     do="`clickwake up` downloads them")
    return Check(name="jars", level="ok", found=f"{name}: {total} jars, every sha256 as pinned")


def _engine() -> Check:
    wanted = ("chdb", "lz4", "zstandard")
    absent = [name for name in wanted if importlib.util.find_spec(name) is None]
    if absent:
        return Check(name="engine", level="problem", found=f"missing: {', '.join(absent)}",
                     do="`pip install '.[local]'` in the repository, or set CLICKWAKE_CLICKHOUSE__HOST")
    return Check(name="engine", level="ok", found="chdb")


def _disk(settings: Settings) -> Check:
    folder = settings.home.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    good = free >= broker.DISK_FREE_BYTES_MIN
    return Check(name="disk", level="ok" if good else "problem",
                 found=f"{free / 2**30:.1f} GiB free for {settings.home.absolute()}",
                 do="" if good else "make room, or set CLICKWAKE_HOME to another disk")


def _supervisor(settings: Settings, *, running: bool) -> Check:
    found = f"{'runs' if running else 'does not run'} in {settings.home.absolute()}"
    return Check(name="clickwake up", level="ok", found=found)


def _ports(settings: Settings, *, own_kafka: bool, own_clickhouse: bool) -> Iterator[Check]:
    wanted = {"Kafka": broker.Broker.default_port if own_kafka else 0,
              "ClickHouse": launch.ClickHouseServer.default_port if own_clickhouse else 0,
              "collector": settings.collector.port}
    taken = [f"{port} ({name})" for name, port in wanted.items() if port and not process.port_is_free(port)]
    if taken:
        yield Check(name="ports", level="warning", found=f"taken: {', '.join(taken)}",
                    do="nothing: `clickwake up` takes free ones and writes them to local.env")
    else:
        yield Check(name="ports", level="ok", found=", ".join(f"{port} free" for port in wanted.values() if port))


def _kafka(settings: Settings, *, expected: bool) -> Check:
    address = settings.kafka.bootstrap_servers
    if settings.kafka.security_protocol == "PLAINTEXT":
        there = broker.answers(address)
    else:
        there = _succeeds(lambda: _list_topics(settings))
    return _server("kafka", address, there, expected, "CLICKWAKE_KAFKA__BOOTSTRAP_SERVERS")


def _list_topics(settings: Settings) -> object:
    from clickwake.topics import describe

    return describe(settings)


def _succeeds(call: Callable[[], object]) -> bool:
    from clickwake.topics import TopicsError

    try:
        call()
    except TopicsError:
        return False
    return True


def _clickhouse(settings: Settings, *, expected: bool) -> Check:
    clickhouse = settings.clickhouse
    there = launch.answers(clickhouse.host, clickhouse.port, secure=clickhouse.secure, ca_file=clickhouse.ca_file)
    address = f"{clickhouse.host}:{clickhouse.port}"
    return _server("clickhouse", address, there, expected, "CLICKWAKE_CLICKHOUSE__HOST and __PORT")


def _server(name: str, address: str, there: bool, expected: bool, setting: str) -> Check:
    if there:
        return Check(name=name, level="ok", found=f"answers at {address}")
    return Check(name=name, level="problem" if expected else "warning", found=f"does not answer at {address}",
                 do=f"`clickwake up` starts one; to use another, set {setting}")


def _models(settings: Settings) -> Check:
    from stream.adapters.models import model_store

    try:
        found = model_store.listed(settings.registry, "*")
    except model_store.BundleRefused as error:
        told = str(error).replace(settings.registry, without_userinfo(settings.registry))
        return Check(name="models", level="problem", found=told, do="is the registry's address right, and does it answer?")
    if found:
        return Check(name="models", level="ok", found=f"{len(found)} entries in {without_userinfo(settings.registry)}")
    return Check(name="models", level="warning", found=f"none in {without_userinfo(settings.registry)}",
                 do="`clickwake train` makes one; until then recommendations come from the live counts alone")


def _opinions(settings: Settings) -> Check:
    """A shop may do without: it is said, and no warning."""
    from stream.adapters.models import satisfaction
    from stream.adapters.models.model_store import RegistryAway

    try:
        languages = sorted(satisfaction.newest_of_each(settings.registry))
    except RegistryAway as error:
        return Check(name="opinions", level="warning", found=f"nobody knows which models read texts: {error}",
                     do="is the registry's address right, and does it answer?")
    if languages:
        return Check(name="opinions", level="ok",
                     found=f"texts are read in {', '.join(languages)}; in other languages stars alone count")  # fmt: skip
    return Check(name="opinions", level="ok", found="no model reads texts: stars and survey scores alone count",
                 do="if texts are to count: `clickwake evaluate satisfaction womens-clothing FILE --publish` for English, "
                    "chinese-reviews for Chinese (docs/satisfaction.md)")  # fmt: skip


def _privacy(settings: Settings) -> Check:
    """Which of its measures are on. What a shop needs is for it to say: no warning."""
    own = settings.privacy
    ids = "ids are pseudonyms" if own.pseudonym_keys else "ids are stored as they come (no pseudonyms)"
    ip = {"truncate": "addresses are cut short", "drop": "addresses are dropped", "keep": "addresses are stored whole"}
    consent = "as privacy.consent says, by tenant" if own.consent else "as having agreed to everything"
    do = [] if own.pseudonym_keys else [f"{variable('privacy', 'pseudonym_keys')}, before the first event"]
    do += [f"{variable('privacy', 'ip')}=truncate"] if own.ip == "keep" else []
    do += [] if own.consent else [variable("privacy", "consent")]
    return Check(name="privacy", level="ok", found=f"{ids}; {ip[own.ip]}; who was asked for no consent counts {consent}",
                 do=f"docs/privacy.md; to change that: {'; '.join(do)}" if do else "")  # fmt: skip


def _unprotected(settings: Settings) -> Iterator[Check]:
    """What nothing holds back in this set-up."""
    kafka, clickhouse, models, metrics = settings.kafka, settings.clickhouse, settings.models, settings.metrics
    whoever = "whoever reaches it reads and writes everything"
    if not kafka.security_protocol.startswith("SASL"):
        yield _open("kafka", kafka.is_local, f"nobody signs in: {whoever}",
                    f"{variable('kafka', 'security_protocol')}=SASL_SSL")  # fmt: skip
    elif kafka.security_protocol == "SASL_PLAINTEXT":
        yield _open("kafka", kafka.is_local, "no TLS: who listens on the way reads events and the password",
                    f"{variable('kafka', 'security_protocol')}=SASL_SSL")  # fmt: skip
    here = clickhouse.host in LOOPBACK
    if not clickhouse.password.get_secret_value():
        yield _open("clickhouse", here, f"no password: {whoever}", variable("clickhouse", "password"))
    elif not clickhouse.secure:
        yield _open("clickhouse", here, "no TLS: who listens on the way reads rows and the password",
                    f"{variable('clickhouse', 'secure')}=true")  # fmt: skip
    if not models.verify_keys and models.signing_key is None:
        here = "://" not in settings.registry and kafka.is_local
        yield _open("models", here, "no key: who writes to the registry or the models topic says what runs, and receipts of "
                    "erasures are not signed", "`clickwake models keygen`")  # fmt: skip
    if metrics.without_key:
        yield _open("metrics", False, "read by whoever reaches a process, but through a proxy: metrics.without_key",
                    f"{variable('metrics', 'key')}, where that network is not private")  # fmt: skip
    if settings.dashboard.host in LOOPBACK and not settings.accounts_file.exists():
        yield _open("dashboard", True, "no accounts: whoever is on this machine sees everything, and may act",
                    "`clickwake dashboard add-user NAME`")  # fmt: skip
    known, held = (keys.held_in(collector) + keys.held_in(api) for collector, api in (
        (Collector().write_keys, Api().read_keys), (settings.collector.write_keys, settings.api.read_keys)))  # fmt: skip
    if set(known) & set(held):
        yield _open("keys", True, "those of the documentation, which everybody knows: good on loopback alone",
                    "`clickwake key TENANT`")  # fmt: skip


def _open(name: str, here: bool, found: str, do: str) -> Check:
    """`here`: it is reached from this machine alone, so it is said, and no warning."""
    return Check(name=f"open {name}", level="ok" if here else "warning", found=found,
                 do=f"if others use this machine: {do}" if here else do)  # fmt: skip
