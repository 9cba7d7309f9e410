"""Fakes of the ports, small enough to be read at a glance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import numpy as np

from schemas.erasure import Erased
from schemas.events import key as user_key
from schemas.outputs import ChurnAlert
from schemas.release import Manifest
from schemas.topics import Topic
from stream.core.ranking.links import NO_LINKS
from stream.core.segments.audience import NO_AUDIENCE, Audience
from stream.core.survival.churn import EDGES_DAYS
from stream.core.terms import Begun
from stream.outbox import OutRecord

DAY_MS = 86_400_000
T0_MS = 1_750_000_000_000


class FakeRecord(NamedTuple):
    key: bytes | None
    value: bytes | None
    offset: int
    timestamp: int
    headers: Sequence[tuple[str, bytes]] = ()


class FakeStore:
    """A dict with the store's promises."""

    def __init__(self, term: int = -1) -> None:
        self.values: dict[bytes, bytes] = {}
        self.purged: list[bytes] = []
        self.changelog_offset, self.term, self.begun = -1, term, Begun()

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.values.get(key) for key in keys]

    def write(self, puts: Mapping[bytes, bytes | None], changelog_offset: int, now_ms: int) -> None:
        for key, value in puts.items():
            if value is None:
                self.values.pop(key, None)
            else:
                self.values[key] = value
        self.changelog_offset = changelog_offset

    def purge(self, keys: Sequence[bytes]) -> None:
        self.purged += keys


class FakeOutputs:
    """Keeps what was sent; raises on the n-th send when told to, as a broker that went away."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.sent: list[tuple[str, int, OutRecord]] = []
        self.offsets: dict[tuple[str, int], int] = {}
        self.sends = 0
        self.fail_at = fail_at

    async def send(self, topic: Topic, records: dict[int, list[OutRecord]]) -> dict[int, int]:
        self.sends += 1
        if self.sends == self.fail_at:
            raise ConnectionError("fake broker is away")
        last = {}
        for partition, some in records.items():
            for record in some:
                self.sent.append((topic.entity, partition, record))
                self.offsets[topic.entity, partition] = self.offsets.get((topic.entity, partition), -1) + 1
            last[partition] = self.offsets[topic.entity, partition]
        return last

    def values(self, entity: str) -> list[Any]:
        return [msgspec.json.decode(record.value or b"null") for topic, _, record in self.sent if topic == entity]


class FakeFence:
    """Holds until told otherwise; answers with the keys that others wrote."""

    def __init__(self) -> None:
        self.held = True
        self.comes_back = False
        self.foreign: set[bytes] = set()
        self.asked: list[tuple[int, int, int]] = []

    def holds(self) -> bool:
        return self.held

    async def regained(self, partition: int) -> bool:
        self.held = self.held or self.comes_back
        return self.held

    async def written_between(self, partition: int, first: int, last: int) -> set[bytes]:
        self.asked.append((partition, first, last))
        return self.foreign


class FakeErasures(Erased):
    """Knows what it was told, and is never behind."""

    async def caught_up(self) -> None:
        return


class FakeRefusals:
    """Who refuses advertising, by key. `coming` is on the topic, but read only once somebody asks how far it goes."""

    def __init__(self, *keys: bytes) -> None:
        self.keys, self.coming = set(keys), set[bytes]()

    def refuses(self, user_key: bytes) -> bool:
        return user_key in self.keys

    async def caught_up(self) -> None:
        self.keys |= self.coming


class FakeClock:
    def __init__(self, now_ms: int = T0_MS) -> None:
        self.at_ms = now_ms

    def now_ms(self) -> int:
        return self.at_ms


async def run_inline(call: Callable[..., Any], *args: object) -> Any:
    return call(*args)


class FakeModels:
    """Mean of the item vectors, and one hazard for everybody."""

    def __init__(
        self, hazard_per_day: float = 0.0, dim: int = 4, audience: Audience = NO_AUDIENCE, version: str = "fake-1"
    ) -> None:
        self.hazard_per_day = hazard_per_day
        self.audience = audience
        self.links = NO_LINKS
        self.learned: dict[str, Any] = {}
        moment = datetime(2025, 1, 1, tzinfo=UTC)
        self.manifest = Manifest(
            format_version=1, model_version=version, parent=None, created_at=moment, feature_version=1, text_space="s",
            text_dim=dim, dim=dim, events_max=50, blend={}, counts={},
            churn={"horizon_days": 14.0, "raise_at": 0.8, "clear_at": 0.7}, data_from=moment, data_to=moment,
            metrics={}, files={},
        )  # fmt: skip

    def adapt(self, text_vectors: Any, item_ids: list[str]) -> Any:
        return text_vectors

    def encode(self, arrays: Mapping[str, Any]) -> Any:
        mask = arrays["mask"].astype(np.float32)
        weights = mask / np.maximum(mask.sum(axis=1, keepdims=True), 1)
        return np.einsum("bl,bld->bd", weights, arrays["items"]), weights

    def survival(self, features: Any) -> Any:
        return np.tile((-self.hazard_per_day * EDGES_DAYS).astype(np.float32), (len(features), 1))

    def effects(self, features: Any) -> Any:
        return {name: np.tile(np.float32([0.5, 0.25]), (len(features), 1)) for name in self.manifest.uplift}


def alert(user: str, **more: Any) -> tuple[bytes, bytes]:
    """Key and value of a churn alert that is raised now."""
    now = datetime.now(UTC)
    made = ChurnAlert(alert_id=f"alert-{user}", tenant="t", user_id=user, state="raised", probability=0.8, horizon_days=14,
                      interval=(0.7, 0.9), reasons=("silent",), last_event_ts=now, as_of_ts=now, model_version="v")
    return user_key("t", user), msgspec.json.encode(msgspec.structs.replace(made, **more))


def event(
    user: str = "u", ts_ms: int = T0_MS, name: str = "Product Viewed", item: str | None = "i1", **more: Any
) -> dict[str, Any]:
    """A canonical event as a dict."""
    result: dict[str, Any] = {
        "messageId": more.pop("id", f"{user}-{ts_ms}-{item}"), "type": "track", "event": name, "tenant": "t", "userId": user,
        "timestamp": datetime.fromtimestamp(ts_ms / 1000, tz=UTC).isoformat(),
        "properties": {"product_id": item} if item else {},
    }  # fmt: skip
    result.update(more)
    return {key: value for key, value in result.items() if value is not None}
