"""No skew: at 1,000 random (user, time) pairs a worker had fed its models, byte for byte, what training's replay gives.

The worker's side is what its personalizer hands to the bundle while a stream comes in: raw records in batches, over four
partitions, with repeated records, anonymous visitors who turn out to be known, and states that are packed, stored and read
again between any two batches. Training's side is the history sorted by event time, replayed until then.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from schemas import topics
from schemas.catalog import ItemVector
from schemas.events import key as user_key
from schemas.events import user_of
from stream.adapters.kafka import kafka_clients
from stream.adapters.models import model_store
from stream.adapters.models.onnx import Bundle
from stream.core.ranking.counts import PartitionCounts
from stream.core.user.featurize import batch, churn_features, sequence
from stream.partition import PartitionState
from stream.personalize import Input, Personalizer
from stream.segments import SegmentDesk
from stream.serving import Serving, ServingState
from stream.settings import Personalize
from tests.support import bundles
from tests.support.bundles import ITEMS, SPACE, TEXT_DIM, Exported
from tests.support.fakes import (
    DAY_MS,
    T0_MS,
    FakeClock,
    FakeErasures,
    FakeFence,
    FakeOutputs,
    FakeRecord,
    FakeStore,
    event,
)
from tests.support.histories import drawn_texts
from training.history import snapshot
from training.history.snapshot import Replay
from training.recommend import offline
from training.text.texts import Texts

PAIRS = 1_000
PARTITIONS = 4
USERS = 250
EVENTS_EACH = 24
COSINE_MIN = 0.9999
NAMES = ("Product Viewed", "Product Viewed", "Product Clicked", "Product Added", "Order Completed", "Product Reviewed")


class Served(NamedTuple):
    """What a worker knew of one user when it recommended to them."""

    user: str
    as_of_ms: int
    inputs: dict[str, npt.NDArray[Any]]  # of the encoder, this user's row
    vector: npt.NDArray[np.float32]  # (D,)
    churn: bytes  # features of the churn model


def stream() -> list[dict[str, Any]]:
    """Events in event-time order, each at a time of its own."""
    rng = np.random.default_rng(4)
    times = T0_MS + np.sort(rng.choice(120 * DAY_MS, USERS * EVENTS_EACH, replace=False))
    events = []
    for number, ts_ms in enumerate(times.tolist()):
        user, name = int(rng.integers(USERS)), str(rng.choice(NAMES))
        item = f"i{rng.integers(len(ITEMS))}"
        who: dict[str, Any] = {"userId": f"u{user}"}
        if user % 3 == 0:  # these come as strangers at times, and say later who they are
            who = [{"userId": None, "anonymousId": f"a{user}"}, who | {"anonymousId": f"a{user}"}, who][int(rng.integers(3))]
        one = event(ts_ms=ts_ms, name=name, item=item, id=f"m{number}", **who)
        if name == "Order Completed":
            bought = rng.choice(len(ITEMS), int(rng.integers(1, 4)), replace=False)
            lines = [{"product_id": f"i{at}", "price": 2.5, "quantity": n} for n, at in enumerate(bought, 1)]
            one["properties"] = {"products": lines, "order_id": f"o{number}"}
        events.append(one)
    return events


class Worker:
    """A personalize worker without Kafka: what it would read from topics is handed to it."""

    def __init__(self, bundle: Bundle, texts: Texts) -> None:
        self.serving = ServingState()
        for item in ITEMS:
            vector = ItemVector(space=SPACE, content_hash="", vector=texts.of([item.item_id]).tobytes(), item=item)
            self.serving.on_vector(f"{SPACE}/t/{item.item_id}".encode(), msgspec.msgpack.encode(vector))
        self.serving.current = self.serving.prepare(bundle)
        self.outputs, self.encoded = FakeOutputs(), list[tuple[dict[str, Any], Any]]()
        settings = Personalize(recommend_interval_ms=0, recommend_users_max=10_000)
        self.personalizer = Personalizer(settings, self.serving, self.outputs, self._run, FakeClock(), self.partition_of,
                                         FakeFence(), FakeErasures(), SegmentDesk(self._run, Path("no such file"), 300))
        counts = self.serving.current.counts_policy
        self.parts = [PartitionState(n, FakeStore(), PartitionCounts(counts), 1, 0) for n in range(PARTITIONS)]
        self.offsets = dict.fromkeys([(topic, n) for topic in ("events", "identity") for n in range(PARTITIONS)], -1)
        self.served: list[Served] = []

    async def _run(self, call: Callable[..., Any], *args: Any) -> Any:
        found = call(*args)
        if call.__name__ == "encode":
            self.encoded.append((args[0], found[0].copy()))
        return found

    @staticmethod
    def partition_of(key: bytes) -> int:
        return kafka_clients.partition_of(key, PARTITIONS)

    async def take(self, events: list[dict[str, Any]]) -> None:
        """One poll: a batch a partition, then what their identities send to one another."""
        by_partition: dict[int, list[tuple[bytes, bytes]]] = {}
        for one in events:
            key = user_key(one["tenant"], user_of(one))
            by_partition.setdefault(self.partition_of(key), []).append((key, msgspec.json.encode(one)))
        for partition, records in by_partition.items():
            self.encoded.clear()
            before = len(self.outputs.sent)
            await self._process("events", partition, records)
            self._note(self.parts[partition], self.outputs.sent[before:])
            await self.personalizer.close_interval(self.parts[partition])
        await self._pass_identities_on()

    async def _process(self, entity: str, partition: int, records: list[tuple[bytes, bytes]]) -> None:
        numbered = []
        for key, value in records:
            self.offsets[entity, partition] += 1
            numbered.append(FakeRecord(key, value, self.offsets[entity, partition], T0_MS + 400 * DAY_MS))
        topic = topics.EVENTS if entity == "events" else topics.IDENTITY
        await self.personalizer.process(self.parts[partition], Input(entity, f"id-{entity}", topic), numbered)

    async def _pass_identities_on(self) -> None:
        while waiting := [one for one in self.outputs.sent if one[0] == topics.IDENTITY.entity]:
            self.outputs.sent.clear()
            for _, partition, record in waiting:
                await self._process("identity", partition, [(record.key, record.value or b"")])
                await self.personalizer.close_interval(self.parts[partition])
        self.outputs.sent.clear()

    def _note(self, part: PartitionState, sent: list[Any]) -> None:
        said = [msgspec.json.decode(record.value) for entity, _, record in sent if entity == topics.RECOMMENDATIONS.entity]
        rows = [({name: one[at] for name, one in arrays.items()}, vectors[at])
                for arrays, vectors in self.encoded for at in range(len(vectors))]  # fmt: skip
        assert len(said) == len(rows), "one row of the encoder's input a recommendation"
        for one, (inputs, vector) in zip(said, rows, strict=True):
            state = part.read(user_key(one["tenant"], one["user_id"]))
            self.served.append(Served(one["user_id"], state.last_ts_ms, inputs, vector, churn_features(state).tobytes()))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, exported: Exported) -> Bundle:
    registry = tmp_path_factory.mktemp("models")
    manifest = bundles.publish(str(registry), exported)
    raw = (registry / "bundles" / manifest.model_version / "manifest.json").read_bytes()
    return model_store.admit(str(registry), str(Path(registry) / "bundles" / manifest.model_version), raw)


async def served_by_a_worker(bundle: Bundle, texts: Texts, events: list[dict[str, Any]]) -> list[Served]:
    rng = np.random.default_rng(5)
    worker, pending, sent = Worker(bundle, texts), list[dict[str, Any]](), list[dict[str, Any]]()
    for one in events:
        pending.append(one)
        names_two = one.get("userId") and one.get("anonymousId")  # the answer is to come before the next event, as it would
        if names_two or rng.random() < 0.1:
            again = [sent[int(rng.integers(max(0, len(sent) - 200), len(sent)))]] if sent and rng.random() < 0.5 else []
            await worker.take([*pending, *again])
            sent += pending
            pending = []
    return worker.served


async def test_a_worker_and_training_see_the_same_at_a_thousand_users_and_times(bundle: Bundle) -> None:
    events = stream()
    history = snapshot.from_events(events, ITEMS)
    texts = drawn_texts(ITEMS, SPACE, TEXT_DIM)
    served = await served_by_a_worker(bundle, texts, events)
    claims = {one.ts_ms for one in history.events if one.user_id and one.anonymous_id}  # answered a moment after this event
    askable = [one for one in served if one.as_of_ms not in claims]
    chosen = np.random.default_rng(6).choice(len(askable), PAIRS, replace=False)
    pairs = sorted((askable[at] for at in chosen), key=lambda one: one.as_of_ms)
    assert sum(len(one.inputs["mask"]) and one.inputs["mask"].sum() > 20 for one in pairs) > 50, "long histories among them"

    serving, replay = Serving(bundle), Replay(history)
    index = offline.index_of(bundle, history.items, texts, replay.snapshot.counts)
    worst = 1.0
    for one in pairs:
        replay.advance(one.as_of_ms + 1)
        state = replay.snapshot.states[one.user]
        assert state.last_ts_ms == one.as_of_ms
        known = sequence(state, one.as_of_ms, serving.events_max)
        arrays = batch([known], index, [one.as_of_ms], serving.events_max)
        for name, of_training in arrays.items():
            length = of_training.shape[1]
            assert one.inputs[name][:length].tobytes() == of_training[0].tobytes(), (one.user, one.as_of_ms, name)
            assert not one.inputs[name][length:].any(), "what follows is padding"
        assert one.churn == churn_features(state).tobytes(), (one.user, one.as_of_ms, "churn")
        (vector,), _ = bundle.encode(arrays)
        worst = min(worst, float(vector @ one.vector / np.linalg.norm(vector) / np.linalg.norm(one.vector)))
    assert worst >= COSINE_MIN
