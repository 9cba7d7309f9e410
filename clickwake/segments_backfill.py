"""`clickwake segments backfill`: who would have been in a segment before its rule was there.

Users are replayed in pages from the events in ClickHouse, through the stream's own fold and rules. What rules read of models
is what the release that is served now says of each state as it was; alerts are those that were said. A page's changes are
written at once, with derived ids, and what former runs had found goes at the end: run again, or after a crash in between, it
ends in the same rows. Users on the list of erasures are left out, and looked for once more after each page is written.

Workers keep a trait from when a rule asks for it; they are told what was said before, so that it counts live.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, closing
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any, NamedTuple

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from clickhouse_connect.driver.exceptions import ClickHouseError
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from clickwake.answering import refused
from clickwake.segments import release
from schemas import topics
from schemas.events import key, ms
from stream.adapters.database import clickhouse
from stream.adapters.database.segment_past import Page, SegmentPast, tenants
from stream.adapters.kafka.erasures import Erasures
from stream.adapters.kafka.global_reader import read_whole, readable
from stream.adapters.kafka.producing import Message, SendFailed, create_producer, send_keyed
from stream.adapters.models import model_store, signing
from stream.core.expressions.measures import Catalog
from stream.core.segments.segment_history import MODELLED, Handover, SegmentHistory, Turn, before, handover, refusals
from stream.core.segments.segment_rules import Rules, RulesError
from stream.core.user import identity
from stream.segment_models import Ahead, ReleaseAsked
from stream.segments import load
from stream.serving import Serving, ServingState
from stream.settings import Settings
from stream.settings import load as load_settings
from training.progress import progress
from training.release import release as releases

KAFKA_WAIT_S = 30.0


class Found(NamedTuple):
    """A user's turns in one segment, at least one; `known_ms`: the user's first event."""

    known_ms: int
    turns: list[Turn]


class NotRead(ConnectionError):
    """What only Kafka knows could not be read, or it could not be told."""


def backfill(names: Sequence[str], since: datetime | None, *, dry_run: bool, as_json: bool) -> int:
    """Fill in the past of all segments, or of `names`; 1 when it cannot, with the reason."""
    settings = load_settings()
    since_ms = 0 if since is None else ms(since if since.tzinfo is not None else since.replace(tzinfo=UTC))
    try:
        with progress() as bars:
            plan = asyncio.run(planned(settings, names))
            run = Backfill(settings, plan, since_ms, bars, dry_run=dry_run)
            found = asyncio.run(run.run())
    except (RulesError, NotRead, releases.NothingReleased, model_store.BundleRefused, SendFailed) as error:
        return refused(error, as_json=as_json)
    except (ClickHouseError, OSError) as error:
        return refused(ConnectionError(clickhouse.missing(settings.clickhouse, error)), as_json=as_json)
    _show(found, plan, run.recalled, dry_run=dry_run, as_json=as_json)
    return 0


class Plan(NamedTuple):
    """The rules to be filled in, why others are not, the release whose quantiles they have, and, where a rule asks its
    models, that release as it is served."""

    rules: Rules
    left_out: dict[str, str]
    version: str
    serving: Serving | None

    @property
    def models(self) -> dict[str, str]:
        """Segment → the release that its past depends on."""
        return {rule.name: self.version for rule, condition in zip(self.rules.rules, self.rules.conditions, strict=True)
                if rule.name in self.rules.relative or condition.names & MODELLED}  # fmt: skip


async def planned(settings: Settings, names: Sequence[str]) -> Plan:
    """What is to be done about all segments, or `names`. Raises RulesError, NotRead, NothingReleased or BundleRefused."""
    version, known = release(settings)
    rules, left_out = chosen(load(settings.segments_file, known, version), names, released=True)
    if not rules.reads & MODELLED:
        return Plan(rules, left_out, version, None)
    try:
        serving = await served(settings)
    except ConnectionError as error:
        asks = next(rule.name for rule, condition in zip(rules.rules, rules.conditions, strict=True)
                    if condition.names & MODELLED)  # fmt: skip
        raise NotRead(f"{error}. Nobody knows without it which release is served, and {asks!r} asks its models: name "
                      "others with --segment") from error  # fmt: skip
    if serving is None:
        return Plan(*chosen(load(settings.segments_file), names, released=False), "", None)
    rules = load(settings.segments_file, serving.audience, serving.version)
    return Plan(*chosen(rules, names, released=True), serving.version, serving)


async def served(settings: Settings) -> Serving | None:
    """The announced release over the vectors of all items, as a worker has it; None where nothing was released."""
    announced = await asyncio.to_thread(releases.current, settings)
    if announced is None:
        return None
    keys = signing.trusted(settings.models)
    bundle = await asyncio.to_thread(model_store.load, settings.registry, announced, settings.training.threads, keys)
    state = ServingState(settings.personalize.satisfaction_weight)

    def take(records: list[Any]) -> None:
        readable(records, lambda one: state.on_vector(one.key or b"", one.value))

    await read_whole(settings, topics.ITEM_VECTORS.name(settings.kafka.topic_prefix), take)
    return state.prepare(bundle)


def chosen(rules: Rules, names: Sequence[str], *, released: bool) -> tuple[Rules, dict[str, str]]:
    """The rules to be filled in, and why others are not. Raises RulesError for a name that is none, or cannot be."""
    cannot = refusals(rules, released=released)
    for name in names:
        if name not in {rule.name for rule in rules.rules}:
            raise RulesError(f"there is no segment {name!r}; clickwake segments check lists those there are")
        if name in cannot:
            raise RulesError(f"segment {name!r} cannot be filled in: {cannot[name]}")
    wanted = [at for at, rule in enumerate(rules.rules) if rule.name not in cannot and (not names or rule.name in names)]
    return rules.only(wanted), {} if names else cannot


class Backfill:
    """One run. `bars` shows how many users are done; `recalled`: of how many the workers were told traits."""

    def __init__(self, settings: Settings, plan: Plan, since_ms: int, bars: Progress, *, dry_run: bool) -> None:
        self.settings, self.plan, self.since_ms, self.bars, self.dry_run = settings, plan, since_ms, bars, dry_run
        self.rules = plan.rules
        self.run_ms = time.time_ns() // 1_000_000
        self.erasures = Erasures(settings)
        self.producer: AIOKafkaProducer | None = None  # while it writes
        self.recalled = 0

    async def run(self) -> list[dict[str, Any]]:
        """Returns what was found of each tenant and segment."""
        async with AsyncExitStack() as stack:
            if not self.dry_run:
                stack.push_async_callback(self.erasures.stop)
                await self._begin_writing(stack)
            client = stack.enter_context(closing(clickhouse.open_client(self.settings.clickhouse)))
            found = []
            for tenant in await asyncio.to_thread(tenants, client):
                about = sorted({rule.name for rule in self.rules.rules if rule.tenant in (None, tenant)})
                if about:
                    found += await self._tenant(SegmentPast(client, tenant, about, self.run_ms))
            return found

    async def _begin_writing(self, stack: AsyncExitStack) -> None:
        """Raises NotRead."""
        self.erasures.start()
        try:
            await asyncio.wait_for(self.erasures.ready(), KAFKA_WAIT_S)
        except TimeoutError as error:
            raise NotRead(
                f"Kafka at {self.settings.kafka.bootstrap_servers} did not give the list of erased users within "
                f"{KAFKA_WAIT_S:.0f} s, and without it nothing is written: start it, or look with --dry-run"
            ) from error
        if self.rules.kept.traits:
            producer = create_producer(self.settings)
            stack.push_async_callback(producer.stop)
            name, wanted = topics.IDENTITY.name(self.settings.kafka.topic_prefix), self.settings.kafka.partitions
            try:
                await producer.start()
                there = len(await producer.partitions_for(name))
            except KafkaError as error:
                raise NotRead(f"Kafka at {self.settings.kafka.bootstrap_servers} takes nothing, so workers cannot be told "
                              f"what users said of themselves: {error!r}") from error  # fmt: skip
            if there < wanted:
                raise NotRead(f"{name} has {there} partitions, not {wanted}, so nobody knows here whose traits go where: "
                              "set CLICKWAKE_KAFKA__PARTITIONS as the workers have it")  # fmt: skip
            self.producer = producer

    async def _tenant(self, past: SegmentPast) -> list[dict[str, Any]]:
        pages, clock_ms, begun_ms = await asyncio.to_thread(lambda: (past.pages(), past.clock_ms(), past.begun_ms()))
        items = await asyncio.to_thread(past.catalog) if any(one.condition for one in self.rules.measures) else {}
        task = self.bars.add_task(f"users of {past.tenant}", total=sum(page.users for page in pages))
        replayed = partial(self._replayed, past, clock_ms, begun_ms, items.get, self._asking(past.tenant, task))
        users, counts = Counter[str](), Counter[tuple[str, bool]]()
        for page in pages:
            found = await asyncio.to_thread(replayed, page)
            if not self.dry_run:
                found = await self._written(past, found)
                await self._recall(past, page)
            for one in found:
                users[one.turns[0].segment] += 1
                counts.update((turn.segment, turn.entered) for turn in one.turns)
            self.bars.advance(task, page.users)
        if not self.dry_run:
            await asyncio.to_thread(past.remove_older)
        return [{"tenant": past.tenant, "segment": name, "users": users[name], "entered": counts[name, True],
                 "left": counts[name, False]} for name in past.segments]  # fmt: skip

    def _asking(self, tenant: str, task: TaskID) -> Callable[[], ReleaseAsked | None]:
        """Makes what asks the models about one page, and shows how many states they were asked of in all."""
        serving, asked = self.plan.serving, Counter[str]()
        if serving is None:
            return lambda: None

        def count(states: int) -> None:
            asked[tenant] += states
            self.bars.update(task, description=f"users of {tenant}, {asked[tenant]:,} states shown to {serving.version}")

        return lambda: ReleaseAsked(serving, tenant, self.rules, count)

    def _replayed(
        self, past: SegmentPast, clock_ms: int, begun_ms: dict[str, int], catalog: Catalog,
        asking: Callable[[], ReleaseAsked | None], page: Page,
    ) -> list[Found]:  # fmt: skip
        """A page's turns before the stream took over, of each user and segment."""
        first_ms, sweep_ms, asked = past.first_ms(page), self.settings.segments.sweep_s * 1000, asking()

        def handed_over(user: str, segment: str) -> Handover:
            return handover(first_ms.get((user, segment)), begun_ms.get(segment), sweep_ms, clock_ms)

        @cache
        def until(user: str) -> int:
            return max(handed_over(user, segment).at_ms for segment in past.segments) if page.holds(user) else 0

        if asked is not None:
            ahead = Ahead(asked, until, self.since_ms)
            ahead.replay.follow(past.events(page))
            ahead.finish()
        history = SegmentHistory(past.tenant, self.rules, until, self.since_ms, catalog, asked)
        alerts = past.alerts(page) if "alerted" in self.rules.reads else []
        events = past.events(page, self.rules.kept_of(past.tenant))
        history.replay.follow(events, [one for one in alerts if one.at_ms <= clock_ms])
        found: list[Found] = []
        for user, turns in history.finish(clock_ms).items():
            by_segment: dict[str, list[Turn]] = {}
            for turn in turns:
                by_segment.setdefault(turn.segment, []).append(turn)
            for segment, several in by_segment.items():
                if kept := before(several, handed_over(user, segment)):
                    found.append(Found(history.replay.states[user].first_ts_ms, kept))
        return found

    async def _written(self, past: SegmentPast, found: list[Found]) -> list[Found]:
        """Write what is of nobody who was erased; returns it."""
        await self.erasures.caught_up()
        kept = [one for one in found if not self._erased(past.tenant, one)]
        numbered = [pair for one in kept for pair in enumerate(one.turns, 1)]
        await asyncio.to_thread(past.write, numbered, self.rules.version, self.plan.models)
        await self.erasures.caught_up()
        if gone := sorted({one.turns[0].user for one in kept if self._erased(past.tenant, one)}):
            await asyncio.to_thread(past.remove, gone)
        return [one for one in kept if one.turns[0].user not in gone]

    async def _recall(self, past: SegmentPast, page: Page) -> None:
        """Tell the workers what the page's users said of themselves; who keeps it already is told nothing new."""
        names = self.rules.kept_of(past.tenant)
        if self.producer is None or not names.traits:
            return
        told: list[Message] = []
        for user, said in (await asyncio.to_thread(past.traits, page, names)).items():
            whose = key(past.tenant, user)
            if kept := tuple(one for one in said if not self.erasures.covers(whose, min(one.trait.ts_ms, one.append_ms))):
                told.append((whose, identity.encode(identity.Recall(past.tenant, user, kept)), ()))
        kafka = self.settings.kafka
        await send_keyed(self.producer, topics.IDENTITY.name(kafka.topic_prefix), told, kafka.partitions)
        self.recalled += len(told)

    def _erased(self, tenant: str, one: Found) -> bool:
        """Whether any of what it was worked out from comes from a time of which nothing may be kept."""
        return self.erasures.covers(key(tenant, one.turns[0].user), one.known_ms)


def _show(found: list[dict[str, Any]], plan: Plan, recalled: int, *, dry_run: bool, as_json: bool) -> None:
    version = plan.version if plan.models else None
    if as_json:
        print(msgspec.json.encode({"ok": True, "written": not dry_run, "segments": found, "left_out": plan.left_out,
                                   "recalled": recalled, "release": version,
                                   "by_release": sorted(plan.models)}).decode())  # fmt: skip
        return
    told = [*([f"{', '.join(sorted(plan.models))}: as {version} sees it now"] if version else []),
            *([f"workers were told the traits of {recalled:,} users"] if recalled else []),
            *(["nothing was written"] if dry_run else [])]  # fmt: skip
    table = Table(box=None, header_style="dim", caption="; ".join(told) or None)
    for name in ("tenant", "segment", "users", "entered", "left"):
        table.add_column(name)
    for one in found:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else value for value in one.values()))
    Console().print(table)
    for name, why in plan.left_out.items():
        Console().print(f"{name} is left out: {why}", style="yellow", markup=False, highlight=False, soft_wrap=True)
