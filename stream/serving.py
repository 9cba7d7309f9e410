"""What a worker ranks with right now: one released bundle and, per tenant, the item index in that bundle's space.

Vectors, counts and releases arrive from topics that every worker reads whole. Everything here happens on the event
loop's thread between two batches, so a batch never sees half a release: it takes `current` once and keeps it.
"""

from __future__ import annotations

import msgspec
import numpy as np
import structlog

from schemas.catalog import UNENCODED, Item, ItemVector
from schemas.unreadable import UNREADABLE
from stream.core.opinions.satisfaction import Level
from stream.core.ranking.blend import Blend
from stream.core.ranking.counts import CountsPolicy, ItemCount
from stream.core.ranking.index import ItemIndex
from stream.core.ranking.links import NO_LINKS
from stream.core.segments.audience import NO_AUDIENCE
from stream.core.survival.churn import ChurnPolicy
from stream.core.survival.reminders import Rhythms
from stream.core.survival.repurchase import Repurchase, repeat_of
from stream.core.user.featurize import Float32
from stream.ports import Models

log = structlog.get_logger()
NO_MODEL = "none"
ADAPT_ITEMS_MAX = 512  # items adapted in one call

_item_vector = msgspec.msgpack.Decoder(ItemVector)
_level = msgspec.msgpack.Decoder(Level)
_item_count = msgspec.msgpack.Decoder(ItemCount)


class Serving:
    """A bundle with its indexes; immutable in its bundle, growing in its items and counts."""

    def __init__(self, models: Models | None, satisfaction_weight: float = 0.0) -> None:
        self.models, self._satisfaction_weight = models, satisfaction_weight
        manifest = models.manifest if models else None
        self.version = manifest.model_version if manifest else NO_MODEL
        self.space = manifest.text_space if manifest else ""
        self.text_dim = manifest.text_dim if manifest else 0
        self.dim = manifest.dim if manifest else 1
        self.events_max = manifest.events_max if manifest else 50
        self.counts_policy = CountsPolicy.from_manifest(manifest.counts) if manifest else CountsPolicy()
        self.blend = Blend.from_manifest(manifest.blend if manifest else {})
        self.links = models.links if models else NO_LINKS
        self.learned = models.learned if models else {}
        self.audience = models.audience if models else NO_AUDIENCE
        self.centroids = self.audience.centroids()  # (K, D)
        self.churn = ChurnPolicy.from_manifest(manifest.churn) if manifest else ChurnPolicy()
        self.repurchase = Repurchase.from_manifest(manifest.repurchase if manifest else {})
        self._repeat = repeat_of(self.links)
        self._gaps = dict(zip(self.links.ids, self.links.gap_days.tolist(), strict=False))  # none before 0.4.0
        self.indexes: dict[str, ItemIndex] = {}

    def index(self, tenant: str) -> ItemIndex:
        """The tenant's index, empty at first."""
        found = self.indexes.get(tenant)
        if found is None:
            found = self.indexes[tenant] = ItemIndex(
                self.dim, self.counts_policy, self.links, self.learned, self._satisfaction_weight
            )
        return found

    def rhythms(self, tenant: str) -> Rhythms | None:
        """What reminders of a tenant's purchases are judged by; None where the bundle has learned nothing of it."""
        if self.repurchase is None:
            return None
        gaps, usual, index = self._gaps, self.repurchase.usual_days, self.index(tenant)
        return Rhythms(self.repurchase, self._repeat, lambda item: gaps.get(item) or usual, index.category_of, index.sells)

    def put_items(self, entries: list[tuple[Item, Float32]]) -> None:
        """Add items with their text vectors (T,), zeros where there is no text."""
        for start in range(0, len(entries), ADAPT_ITEMS_MAX):
            part = entries[start : start + ADAPT_ITEMS_MAX]
            if self.models is None:
                vectors = np.zeros((len(part), self.dim), dtype=np.float32)
            else:
                text = np.stack([vector for _, vector in part])  # (N, T)
                vectors = self.models.adapt(text, [item.item_id for item, _ in part])  # (N, D)
            for (item, _), vector in zip(part, vectors, strict=True):
                self.index(item.tenant).put(item, vector)


class ServingState:
    """The raw contents of the topics, kept so that a release can be made ready beside the one that runs."""

    def __init__(self, satisfaction_weight: float = 0.0) -> None:
        self._satisfaction_weight = satisfaction_weight
        self.current = Serving(None, satisfaction_weight)
        self.satisfaction: dict[tuple[str, str], tuple[float, float]] = {}  # (tenant, item) → opinions, their sum
        self.vectors: dict[tuple[str, str], dict[str, ItemVector]] = {}  # (tenant, item) → space → vector
        self.counts: dict[tuple[str, str, int], ItemCount] = {}  # (tenant, item, partition)
        self._untaken: dict[bytes, bytes] = {}  # records of counts that nobody has looked at yet, the newest of each key
        self._terms: dict[tuple[int, int], int] = {}  # (partition, log's partition) → the newest term of its counts
        self.overwritten: dict[int, set[str]] = {}  # partition → items whose last record does not count, `tenant/item`

    def on_vector(self, key: bytes, value: bytes | None) -> tuple[Item, Float32] | None:
        """One record of the item-vectors topic; returns what the current index is to be told, if anything. This and the
        following raise `UNREADABLE` or ValueError for a record that is none of their topic's, and keep nothing of it."""
        space, tenant, item_id = key.decode().split("/", 2)
        if value is None:
            spaces = self.vectors.get((tenant, item_id), {})
            spaces.pop(space, None)
            if not spaces:
                self.vectors.pop((tenant, item_id), None)
            # a space that is out of use, or not in use yet, may have it still: nobody removes it there, or only later
            if not spaces or (self.current.space and not spaces.keys() & {self.current.space, UNENCODED}):
                self.current.index(tenant).remove(item_id)
            return None
        vector = _item_vector.decode(value)
        told = None
        known, current = self.vectors.get((tenant, item_id), {}), self.current.space
        if space == current or not current or (space == UNENCODED and current not in known):
            told = vector.item, self._text_vector(vector, self.current)
        self.vectors.setdefault((tenant, item_id), known)[space] = vector
        return told

    def text_vector(self, tenant: str, item_id: str, space: str, dim: int) -> Float32 | None:
        """(T,) what the text encoder of a space said of an item; None where it said nothing, or nothing of `dim` numbers."""
        found = self.vectors.get((tenant, item_id), {}).get(space)
        return np.frombuffer(found.vector, dtype="<f4") if found is not None and len(found.vector) == 4 * dim else None

    def lists(self, tenant: str, item_id: str) -> bool:
        """Whether the tenant's catalog names the item."""
        return (tenant, item_id) in self.vectors

    def on_count(self, key: bytes, value: bytes | None, log_partition: int = 0, term: int | None = None) -> None:
        """One record of the item-counts topic: absolute totals of one partition. It is only kept: under load most are
        replaced by the next before anybody ranks. What an owner of an older term wrote late does not count; who owns the
        partition now publishes it anew."""
        if value is None:
            return
        name, tenant, item_id = key.decode().split("/", 2)
        owner = int(name)
        if term is not None:
            newest = self._terms.setdefault((owner, log_partition), term)
            if term < newest:
                self.overwritten.setdefault(owner, set()).add(f"{tenant}/{item_id}")
                return
            self._terms[owner, log_partition] = term
        self._untaken[key] = value

    def on_satisfaction(self, key: bytes, value: bytes | None) -> None:
        """One record of the satisfaction topic; those about brands are for others."""
        tenant, about, name = key.decode().split("/", 2)
        if about != "item" or value is None:
            return
        level = _level.decode(value)
        self.satisfaction[tenant, name] = (float(level.n), level.total)
        self.current.index(tenant).set_satisfaction(name, level.n, level.total)

    def take_counts(self) -> None:
        """Decode what came since and put it into the current index."""
        untaken, self._untaken = self._untaken, {}
        for key, value in untaken.items():
            partition, tenant, item_id = key.decode().split("/", 2)
            try:
                count = _item_count.decode(value)
            except UNREADABLE as error:
                log.error("counts left out", key=key, why=str(error), next="who writes to the item-counts topic?")
                continue
            self.counts[tenant, item_id, int(partition)] = count
            self.current.index(tenant).set_counts(item_id, int(partition), count)

    def counts_of(self, partition: int) -> dict[str, ItemCount]:
        """An owner's own totals as published, `tenant/item` → totals: where it starts when a partition is assigned."""
        self.take_counts()
        return {
            f"{tenant}/{item}": msgspec.msgpack.decode(msgspec.msgpack.encode(count), type=ItemCount)
            for (tenant, item, owner), count in self.counts.items()
            if owner == partition
        }

    def prepare(self, models: Models) -> Serving:
        """A Serving for a bundle with all known items and counts; the caller swaps it in between two batches. Items that are
        not encoded yet for it are there like items without text.

        Raises ValueError when the catalog's vectors are of another dimension than the bundle expects.
        """
        self.take_counts()
        serving = Serving(models, self._satisfaction_weight)
        entries = []
        for spaces in self.vectors.values():
            vector = spaces.get(serving.space) or spaces.get(UNENCODED)
            if vector is not None:
                entries.append((vector.item, self._text_vector(vector, serving)))
        serving.put_items(entries)
        for (tenant, item_id, partition), count in self.counts.items():
            serving.index(tenant).set_counts(item_id, partition, count)
        for (tenant, item_id), (n, total) in self.satisfaction.items():
            serving.index(tenant).set_satisfaction(item_id, n, total)
        return serving

    def _text_vector(self, vector: ItemVector, serving: Serving) -> Float32:
        if not vector.vector or serving.models is None:
            return np.zeros(serving.text_dim, dtype=np.float32)
        values = np.frombuffer(vector.vector, dtype="<f4")
        if len(values) != serving.text_dim:
            raise ValueError(
                f"item {vector.item.item_id} has {len(values)} dimensions in space {vector.space}, "
                f"bundle {serving.version} expects {serving.text_dim}"
            )
        return values.astype(np.float32)
