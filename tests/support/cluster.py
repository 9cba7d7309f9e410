"""Real Kafka in tests: topics from the table, records in, everything on a topic out, worker processes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import httpx
import msgspec
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import CoordinatorNotAvailableError

from schemas import topics
from schemas.events import key as user_key
from schemas.events import user_of
from schemas.topics import Topic
from stream.adapters.health.lag import Lag
from stream.core.decode import Drop, Reject, decode
from stream.core.ranking.counts import CountsPolicy, ItemCount, PartitionCounts
from stream.core.user import identity
from stream.core.user.fold import Outcome, ads_stated, fold
from stream.core.user.state import Reminders, UserState
from stream.core.user.state import decode as decode_state
from stream.core.user.state import encode as encode_state
from stream.partition import META_KEY, Accounts, Meta, unpack
from stream.settings import Settings

ROOT = Path(__file__).parents[2]
ENDS_S = 20.0  # after SIGTERM, whatever it is at
POLL_S, POLL_S_MAX = 0.05, 0.5
SHORT_SESSION_MS = 6_000  # the least that brokers allow


ANSWER_S = 30.0  # a page that is asked for first is made then


def until(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """Poll until the condition is true; fails with what was awaited. What takes long to ask is asked for half of the time at
    most: what is awaited needs the processor, too."""
    deadline = time.monotonic() + timeout_s
    while (asked := time.monotonic()) < deadline:
        found = condition()
        if found:
            return found
        time.sleep(min(max(POLL_S, time.monotonic() - asked), POLL_S_MAX))
    raise AssertionError(f"not within {timeout_s:.0f} s: {what}")


def answers(url: str) -> bool:
    """Whether there is a page at an address, now."""
    try:
        return httpx.get(url, trust_env=False, timeout=ANSWER_S).status_code == 200
    except httpx.HTTPError:
        return False


class Sender:
    """One producer for many sends; each returns once the broker has acknowledged all of it."""

    def __init__(self, settings: Settings, topic: Topic = topics.EVENTS) -> None:
        self._producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers, acks="all", linger_ms=5)
        self._topic = topic.name(settings.kafka.topic_prefix)

    def send(self, events: Iterable[dict[str, Any] | tuple[bytes | None, bytes | None]],
             headers: Sequence[tuple[str, bytes]] = ()) -> int:  # fmt: skip
        """Events by the contract's partitioner; raw (key, bytes) pairs go as they are. `headers`: of each."""
        futures = []
        for one in events:
            if isinstance(one, tuple):
                key, value = one
            else:
                key = user_key(one["tenant"], user_of(one))
                value = msgspec.json.encode(one)
            futures.append(self._producer.send(self._topic, key=key, value=value, headers=list(headers)))
        self._producer.flush(60)
        for future in futures:
            future.get(10)
        return len(futures)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._producer.close()


def produce_events(settings: Settings, events: Iterable[dict[str, Any] | tuple[bytes | None, bytes | None]]) -> int:
    """Send events and wait for the broker; see `Sender.send`."""
    with Sender(settings) as sender:
        return sender.send(events)


def read_all(settings: Settings, topic: Topic) -> list[Any]:
    """Every record on a topic, by partition and offset."""
    consumer = KafkaConsumer(bootstrap_servers=settings.kafka.bootstrap_servers, group_id=None, auto_offset_reset="earliest",
                             consumer_timeout_ms=1_000, enable_auto_commit=False,
                             check_crcs=False)  # fmt: skip  # of a long changelog they take minutes, in plain Python
    name = topic.name(settings.kafka.topic_prefix)
    parts = [TopicPartition(name, p) for p in sorted(consumer.partitions_for_topic(name) or ())]
    consumer.assign(parts)
    consumer.seek_to_beginning(*parts)
    ends = consumer.end_offsets(parts)
    records: list[Any] = []
    while any(consumer.position(tp) < ends[tp] for tp in parts):
        for some in consumer.poll(timeout_ms=500).values():
            records.extend(some)
    consumer.close()
    return records


class Tail:
    """Follows a topic from its beginning; `records` are all that were seen so far."""

    def __init__(self, settings: Settings, topic: Topic) -> None:
        self.records: list[Any] = []
        self._consumer = KafkaConsumer(bootstrap_servers=settings.kafka.bootstrap_servers, group_id=None,
                                       auto_offset_reset="earliest", enable_auto_commit=False,
                                       fetch_max_wait_ms=20)  # fmt: skip
        name = topic.name(settings.kafka.topic_prefix)
        self._consumer.assign([TopicPartition(name, p) for p in sorted(self._consumer.partitions_for_topic(name) or ())])

    def poll(self) -> list[Any]:
        """Take what is there, waiting 50 ms at most for the first of it; returns all records so far."""
        for some in self._consumer.poll(timeout_ms=50).values():
            self.records.extend(some)
        return self.records

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()


def of_short_sessions(settings: Settings) -> Settings:
    """The broker notices sooner that a worker is dead, so that others go on sooner."""
    kafka = settings.kafka.model_copy(update={"session_timeout_ms": SHORT_SESSION_MS})
    return settings.model_copy(update={"kafka": kafka})


def lag(settings: Settings, group: str, topic: Topic) -> int:
    """Records between the group's commits and the end of the topic; all of them where nothing is committed."""
    with Lag(settings) as seen:
        return seen.of(f"{settings.kafka.topic_prefix}-{group}", seen.ends(topic))


def sink_lag(settings: Settings) -> int:
    """Records of all topics the sink reads that it has not committed."""
    with Lag(settings) as seen:
        return seen.storing()


def await_stored(settings: Settings) -> None:
    """Until the sink has made its tables and stored what there was: before that a question about them fails."""
    until(lambda: sink_lag(settings) == 0, 60, "the sink has made its tables and stored what there was")


_started: list[subprocess.Popen[bytes]] = []


def worker_environment(settings: Settings, home: Path, **extra: str) -> dict[str, str]:
    """What a worker process with these settings is started with."""
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},  # it is no test itself
        "CLICKWAKE_HOME": str(home),
        "CLICKWAKE_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "CLICKWAKE_KAFKA__TOPIC_PREFIX": settings.kafka.topic_prefix,
        "CLICKWAKE_KAFKA__PARTITIONS": str(settings.kafka.partitions),
        "CLICKWAKE_KAFKA__SESSION_TIMEOUT_MS": str(settings.kafka.session_timeout_ms),
        "CLICKWAKE_CLICKHOUSE__PORT": str(settings.clickhouse.port),
        "CLICKWAKE_CLICKHOUSE__DATABASE": settings.clickhouse.database,
        "CLICKWAKE_MODELS__REGISTRY": settings.registry,
        **extra,
    }


def start_worker(
    settings: Settings, module: str, home: Path | None = None, arguments: Sequence[str] = (), **extra: str
) -> subprocess.Popen[bytes]:
    """A worker process with these settings; its log is `<home>/<module>-N.log`."""
    home = home or settings.home
    home.mkdir(parents=True, exist_ok=True)
    log = home / f"{module}-{len(list(home.glob('*.log')))}.log"
    with log.open("wb") as out:
        command = [sys.executable, "-m", module, *arguments]
        _started.append(subprocess.Popen(command, cwd=ROOT, env=worker_environment(settings, home, **extra), stdout=out,
                                         stderr=subprocess.STDOUT))  # fmt: skip
        return _started[-1]


def end_left_over() -> None:
    """Workers that a failed test has left: they would fail the next one as processes that nobody waits for."""
    while _started:
        process = _started.pop()
        process.kill()
        process.wait()


class Worker:
    """A worker process: its log and its metrics."""

    def __init__(self, process: subprocess.Popen[bytes], home: Path, module: str) -> None:
        self.process, self.home, self.module = process, home, module
        self.stopped = False

    def stop(self) -> None:
        """It must have lived until now and end in order within ENDS_S when told to."""
        assert self.process.poll() is None, f"{self.module} ended by itself:\n{self.log()[-3_000:]}"
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(ENDS_S) == 0, self.log()[-3_000:]
        self.stopped = True

    def log(self) -> str:
        return "".join(path.read_text() for path in sorted(self.home.glob(f"{self.module}-*.log")))

    def metrics(self) -> dict[str, float]:
        """`name{label="value"}` → value; empty while the process has not said where its metrics are."""
        for path in (self.home / "run").glob("*.json"):
            found = json.loads(path.read_text())
            if found["pid"] == self.process.pid:
                return metrics(found["metrics_port"])
        return {}


def metrics(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = [line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def outcomes(worker: Worker) -> Counter[str]:
    """What became of a personalize worker's inputs, and what it said, over its partitions."""
    found: Counter[str] = Counter()
    for name, value in worker.metrics().items():
        if name.startswith("clickwake_outcomes_total{"):
            found[name.split('outcome="')[1].split('"')[0]] += round(value)
    return found


@contextlib.contextmanager
def running(settings: Settings, module: str, home: Path | None = None, **extra: str) -> Iterator[Worker]:
    """A worker for the length of a block, or until it is stopped; see `Worker.stop`."""
    worker = Worker(start_worker(settings, module, home, **extra), home or settings.home, module)
    try:
        yield worker
        if not worker.stopped:
            worker.stop()
    finally:
        if worker.process.poll() is None:
            worker.process.kill()
            worker.process.wait()


def members(settings: Settings, group: str) -> int:
    """Members of a group that has settled; 0 while it rebalances or nobody knows it yet."""
    admin = KafkaAdminClient(bootstrap_servers=settings.kafka.bootstrap_servers)
    try:
        found = admin.describe_groups([f"{settings.kafka.topic_prefix}-{group}"])
    except CoordinatorNotAvailableError:
        return 0
    finally:
        admin.close()
    (one,) = found.values()
    return len(one["members"]) if one["group_state"] == "Stable" else 0


class Recomputed(NamedTuple):
    """The input log folded once, in order: states by user, live counts by key of their topic, and of each partition how many
    records came to which end."""

    states: dict[bytes, UserState]
    counts: dict[str, ItemCount]
    ends: dict[int, Counter[str]]


def oracle(settings: Settings) -> Recomputed:
    """A plain recomputation from the input log: the truth every run must end in. Claims of devices count once all is folded:
    until then their owners answer again with whatever comes."""
    own = settings.personalize
    claims: list[identity.Claim] = []
    states: dict[bytes, UserState] = {}
    counted: dict[int, PartitionCounts] = {}
    ends: defaultdict[int, Counter[str]] = defaultdict(Counter)
    clocks_ms: Counter[int] = Counter()
    for record in read_all(settings, topics.EVENTS):
        at, decoded = record.partition, decode(record.value, record.timestamp, own.skew_max_ms)
        if isinstance(decoded, Reject):
            ends[at]["rejected"] += 1
            continue
        if isinstance(decoded, Drop):
            ends[at][f"dropped:{decoded.reason}"] += 1
            if decoded.event is not None:  # no profile any more; what was said of advertising is none
                key = user_key(decoded.event.tenant, decoded.event.user)
                states[key] = UserState(ads=max(states.get(key, UserState()).ads, ads_stated(decoded.event)))
            continue
        event = decoded.event
        if event.lane == "live":
            clocks_ms[at] = max(clocks_ms[at], event.ts_ms)
        state = states.setdefault(user_key(event.tenant, event.user), UserState())
        begins = state.events == 0
        outcome, added = fold(state, event, clocks_ms[at], own.lateness_max_ms)
        if begins and outcome is Outcome.FOLDED:
            state.since_ms = record.timestamp
        if outcome is Outcome.FOLDED:
            claims += identity.claims_of(state, event)
        ends[at][outcome.value] += 1
        counts = counted.setdefault(at, PartitionCounts(CountsPolicy()))
        for touch in added:
            counts.observe(event.tenant, touch, state.ring, record.offset, {})
    for claim in claims:
        identity.note_claim(states.setdefault(user_key(claim.tenant, claim.anonymous), UserState()), claim)
    for key, state in [*states.items()]:
        for answer in identity.answers(state, *key.decode().split("/", 1)):
            identity.link(states.setdefault(user_key(answer.tenant, answer.user), UserState()), answer)
    by_key = {f"{partition}/{key}": count for partition, some in counted.items() for key, count in some.counts.items()}
    return Recomputed({key: state for key, state in states.items() if state != UserState()}, by_key, dict(ends))


def comparable(state: UserState) -> bytes:
    """A state without what depends on when something was said rather than on what happened."""
    plain = msgspec.structs.replace(state, recommended_ts_ms=0, due_ts_ms=0, claimed={}, reminders=Reminders(),
                                     put_event_id="", since_ms=0)  # fmt: skip
    return encode_state(plain)


def assert_states_are_true(settings: Settings, form: Callable[[UserState], bytes] = comparable) -> None:
    """Every user's state is what folding the log once gives: nothing lost, nothing twice; and each record came to the end
    that it comes to there. `form`: what of a state is compared."""
    assert_each_record_has_one_end(settings)
    (truth, _, ends), found = oracle(settings), stored_states(settings)
    assert {partition: one.ends for partition, one in accounts(settings).items()} == ends
    assert found.keys() == truth.keys()
    assert {key: one.since_ms for key, one in found.items()} == {key: one.since_ms for key, one in truth.items()}
    formed = {key: (form(found[key]), form(truth[key])) for key in truth}
    wrong = {key: _different(*map(decode_state, both)) for key, both in formed.items() if both[0] != both[1]}
    assert not wrong, f"{len(wrong)} of {len(truth)} states differ; found and true: {list(wrong.items())[:3]}"


def _different(found: UserState, true: UserState) -> dict[str, Any]:
    """Field → what is found and not true, what is true and not found; of those fields that differ."""

    def parts(value: Any) -> set[str]:
        whole = value.items() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        return {repr(one) for one in whole}

    both = {name: (getattr(found, name), getattr(true, name)) for name in UserState.__struct_fields__}
    return {name: (sorted(parts(mine) - parts(theirs)), sorted(parts(theirs) - parts(mine)))
            for name, (mine, theirs) in both.items() if mine != theirs}  # fmt: skip


def stored_states(settings: Settings) -> dict[bytes, UserState]:
    """What the changelog says the states are: the last value of each key that counts."""
    last = {key: value for puts in _changelog(settings).values() for key, value in puts.items()}
    return {key: unpack(value) for key, value in last.items() if not key.startswith(b"#") and value is not None}


def assert_each_record_has_one_end(settings: Settings) -> None:
    """What the partitions' own records say became of the events topic, since its beginning and over all restarts: of each of
    its records one thing. For a topic that lost nothing, once all of it is folded."""
    records = Counter(record.partition for record in read_all(settings, topics.EVENTS))
    found = accounts(settings)
    assert {partition: (one.first, sum(one.ends.values())) for partition, one in found.items()} == {
        partition: (0, count) for partition, count in records.items()}, found  # fmt: skip


def accounts(settings: Settings) -> dict[int, Accounts]:
    """Of each partition that has folded something, by its changelog."""
    events = topics.EVENTS.name(settings.kafka.topic_prefix)
    known = {partition: msgspec.msgpack.decode(puts[META_KEY] or b"", type=Meta)
             for partition, puts in _changelog(settings).items() if META_KEY in puts}  # fmt: skip
    return {partition: meta.accounts for partition, meta in known.items() if events in meta.offsets}


def _changelog(settings: Settings) -> dict[int, dict[bytes, bytes | None]]:
    """Partition → the last value of each key that counts."""
    from stream.core import terms

    logs: dict[int, list[Any]] = {}
    for record in read_all(settings, topics.STATE):
        logs.setdefault(record.partition, []).append(record)
    return {partition: terms.count(records).puts for partition, records in logs.items()}


def assert_counts_are_true(settings: Settings) -> None:
    """The last record of each live count is what counting the log once gives, whoever wrote it, died and came again. For the
    counts that workers have without a model, or with one whose manifest says nothing of them."""
    true = oracle(settings).counts
    found = {record.key.decode(): msgspec.msgpack.decode(record.value, type=ItemCount)
             for record in read_all(settings, topics.ITEM_COUNTS)}  # fmt: skip
    assert true and found.keys() == true.keys()
    wrong = {key: (found[key], true[key]) for key in true if not _same_count(found[key], true[key])}
    assert not wrong, f"{len(wrong)} of {len(true)} counts differ; found and true: {list(wrong.items())[:3]}"


def _same_count(one: ItemCount, other: ItemCount) -> bool:
    """But for the last bits of sums."""
    weights = zip(one.popularities(), other.popularities(), strict=True)
    return ((one.ts_ms, one.rules_ts_ms, one.offset, one.successors.keys())
            == (other.ts_ms, other.rules_ts_ms, other.offset, other.successors.keys())
            and all(math.isclose(*both, rel_tol=1e-9) for both in weights)
            and all(math.isclose(value, other.successors[item], rel_tol=1e-9) for item, value in one.successors.items()))


def item_counts(settings: Settings) -> dict[str, float]:
    """Popularity weights undone of their decay are not comparable; totals of successors over partitions are."""
    last = {record.key: record.value for record in read_all(settings, topics.ITEM_COUNTS)}
    totals: dict[str, float] = {}
    for key, value in last.items():
        item = key.decode().split("/", 1)[1]
        count = msgspec.msgpack.decode(value, type=ItemCount)
        totals[item] = totals.get(item, 0.0) + count.popularity + sum(count.successors.values())
    return totals
