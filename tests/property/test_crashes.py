"""A log that is read again from the last commit after every crash, at whatever send the process is gone: what is said and
what is kept are as if nothing had happened.

The log and the sends are fakes, so that thousands of crashes can be drawn; `tests/chaos` does it to processes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import topics
from schemas.topics import Topic
from stream.core import terms
from stream.core.ranking.counts import CountsPolicy, PartitionCounts
from stream.core.segments.segments import members
from stream.fleet import rebuild_due
from stream.outbox import OutRecord
from stream.partition import DUE_PREFIX, META_KEY, Meta, unpack
from tests.support.fakes import T0_MS, FakeModels, FakeOutputs, FakeRecord, FakeStore, event
from tests.unit.test_personalize import Bench

USERS, ITEMS = 4, 6
SAID = {"recommendations": "recommendation_id", "churn-alerts": "alert_id", "complements": "recommendation_id",
        "segment-changes": "change_id"}  # fmt: skip
OF_SHY = "churn-alerts of shy"
NO = {"consent": {"personalization": False}}


class Abort(NamedTuple):
    """The process is gone at its `send`th send. So many records of it had reached the broker where they are a changelog's:
    what an interval writes there may take several requests. Of others it has all or none."""

    send: int
    arrived: int


class Gone(Exception):
    """The process is no more."""


class Dying(FakeOutputs):
    """Ends the process at its abort."""

    def __init__(self, abort: Abort | None) -> None:
        super().__init__()
        self.abort = abort

    async def send(self, topic: Topic, records: dict[int, list[OutRecord]]) -> dict[int, int]:
        if self.abort is None or self.sends + 1 != self.abort.send:
            return await super().send(topic, records)
        if topic is topics.STATE:
            records = {partition: some[: self.abort.arrived] for partition, some in records.items()}
        if self.abort.arrived:
            await super().send(topic, {partition: some for partition, some in records.items() if some})
        raise Gone


class Installation:
    """What outlives a process: the log and where its group is, the outputs, the changelog, the store's folder."""

    def __init__(self, batches: list[list[dict[str, Any]]], closing: set[int], interval_ms: int, rules: Path) -> None:
        self.batches, self.closing = batches, closing  # an interval closes after these batches
        self.interval_ms = interval_ms  # between recommendations to a user
        self.rules = rules
        self.committed = 0  # batches
        self.sent: list[tuple[str, OutRecord]] = []
        self.store = FakeStore()

    async def live(self, abort: Abort | None) -> Bench | None:
        """One process from its start to its abort, or to the end of the log; then what it holds."""
        self._recover()
        bench = Bench(FakeModels(hazard_per_day=0.01), self.store, self.rules, recommend_interval_ms=self.interval_ms)
        bench.personalizer.outputs = bench.outputs = outputs = Dying(abort)
        for entity, record in self.sent:
            if entity == topics.ITEM_COUNTS.entity:
                bench.serving.on_count(record.key, record.value)
        bench.part = bench.opened(PartitionCounts(CountsPolicy(), bench.serving.counts_of(0)))
        due = {key[len(DUE_PREFIX) :]: value for key, value in self.store.values.items() if key.startswith(DUE_PREFIX)}
        bench.part.load_timers([(key, int.from_bytes(value, "big")) for key, value in due.items()])
        bench.items(ITEMS)
        bench.offset = sum(map(len, self.batches[: self.committed])) - 1
        first_ms = bench.appended_ms
        try:
            for number in range(self.committed, len(self.batches)):
                bench.appended_ms = first_ms + number
                await bench.feed(*self.batches[number])
                if number in self.closing:
                    await bench.close()
                    self.committed = number + 1
        except Gone:
            return None
        finally:
            self.sent += [(entity, record) for entity, _, record in outputs.sent]
        return bench

    def _recover(self) -> None:
        """The store is brought up to the changelog's end, as `stream.topology` does it."""
        values = self.store.values
        log = [record for entity, record in self.sent if entity == topics.STATE.entity]
        counted = terms.count(FakeRecord(one.key, one.value, offset, 0, one.headers) for offset, one in enumerate(log))
        self.store.write(counted.puts, 0, 0)
        self.store.begun = counted.begun
        gone: dict[bytes, bytes | None] = {key: None for key in values if key.startswith(DUE_PREFIX)}
        self.store.write(gone | rebuild_due(iter([*values.items()])), 0, 0)

    def said(self) -> dict[str, set[str]]:
        """Output topic → ids on it; `OF_SHY`: of the alerts, those about the user who withdraws."""
        found = {entity: set[str]() for entity in (*SAID, OF_SHY)}
        for entity, record in self.sent:
            if entity in SAID:
                said = msgspec.json.decode(record.value or b"")
                found[OF_SHY if entity == "churn-alerts" and said["user_id"] == "shy" else entity].add(said[SAID[entity]])
        return found
    def kept(self) -> dict[bytes, bytes]:
        """What the store has. In which order users are owed an answer decides nothing: each has a time of their own."""
        meta = msgspec.msgpack.decode(self.store.values[META_KEY], type=Meta)
        meta.owed.sort()
        return self.store.values | {META_KEY: msgspec.msgpack.encode(meta)}

    def open(self) -> set[tuple[str, str]]:
        """Who was alerted about, or has entered a segment, and nothing on the topics takes it back."""
        found = dict[tuple[str, str], bool]()
        for entity, record in self.sent:
            if entity in ("segment-changes", "churn-alerts"):
                said = msgspec.json.decode(record.value or b"")
                what, state = said.get("segment", "alert"), said.get("change", said.get("state"))
                found[said["user_id"], what] = state in ("entered", "raised")
        return {one for one, stands in found.items() if stands}

    def held(self) -> set[tuple[str, str]]:
        """The same by the states."""
        states = {key.decode().removeprefix("t/"): unpack(value) for key, value in self.store.values.items()
                  if not key.startswith(b"#")}  # fmt: skip
        return ({(user, name) for user, state in states.items() for name in members(state)} |
                {(user, "alert") for user, state in states.items() if state.alert.raised and not state.alert.silenced})


def stream(draw: random.Random, count: int) -> Iterator[dict[str, Any]]:
    """Live events in a little disorder, some of them twice, with pauses that are long enough for an alert. One user now and
    then withdraws their consent to a profile; of theirs none comes twice, as of an event from before that is said again."""
    at_ms, made = T0_MS, []
    for number in range(count):
        at_ms += draw.choice([1_000, 60_000, 3_600_000, 40 * 86_400_000])
        if made and draw.random() < 0.15:
            yield draw.choice(made)
            continue
        if draw.random() < 0.15:
            yield event(user="shy", item="i0", id=f"m{number}", ts_ms=at_ms, name="Order Completed", lane="live",
                        context=NO if draw.random() < 0.4 else None)  # fmt: skip
            continue
        late_ms = draw.choice([0, 0, 0, 30_000])
        made.append(event(user=f"u{draw.randrange(USERS)}", item=f"i{draw.randrange(ITEMS)}", id=f"m{number}",
                          ts_ms=at_ms - late_ms, name=draw.choice(["Product Viewed", "Product Added", "Order Completed"]),
                          lane="live"))  # fmt: skip
        yield made[-1]


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of what events alone change: what an alert or time changes may be looked at at another moment after a crash."""
    path = tmp_path_factory.mktemp("rules") / "segments.yml"
    path.write_text("lifecycle: false\nsegments: [{name: buyers, when: orders > 0}]\n")
    return path


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), sizes=st.lists(st.integers(1, 6), min_size=2, max_size=8),
    aborts=st.lists(st.builds(Abort, st.integers(1, 14), st.integers(0, 4)), max_size=6), data=st.data(),
    interval_ms=st.sampled_from([0, 90_000]),
)  # fmt: skip
async def test_crashes_show_in_nothing(
    rules: Path, seed: int, sizes: list[int], aborts: list[Abort], data: st.DataObject, interval_ms: int
) -> None:  # fmt: skip
    events = stream(random.Random(seed), sum(sizes))
    batches = [[next(events) for _ in range(size)] for size in sizes]
    end_ms = T0_MS + sum(sizes) * 40 * 86_400_000
    batches += [[event(user="later", id=f"later{n}", ts_ms=end_ms + n, lane="live")] for n in range(3)]  # all is due by then
    closing = data.draw(st.sets(st.integers(0, len(sizes) - 1))) | set(range(len(sizes) - 1, len(batches)))
    undisturbed, crashing = (Installation(batches, closing, interval_ms, rules) for _ in range(2))
    whole = await undisturbed.live(None)
    for abort in aborts:
        await crashing.live(abort)
    again = await crashing.live(None)
    assert whole is not None and again is not None
    crashed, said = crashing.said(), undisturbed.said()
    # what goes with a basket is said once something is known to: counts that are read back know more than there was before
    assert crashed.pop("complements") >= said.pop("complements")
    # what has just come due of somebody is not said if they withdraw next; who reads again may have looked before
    assert crashed.pop(OF_SHY) >= said.pop(OF_SHY)
    assert crashed == said
    assert crashing.kept() == undisturbed.kept()
    assert crashing.open() == undisturbed.open() == crashing.held()
    assert again.part.meta.accounts == whole.part.meta.accounts and again.part.meta.accounts.first == 0
    assert sum(again.part.meta.accounts.ends.values()) == sum(map(len, batches)) and not again.part.meta.ahead
    assert again.part.counts.counts == whole.part.counts.counts
