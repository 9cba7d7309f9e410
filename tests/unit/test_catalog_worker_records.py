"""Records of the items topic as the catalog worker takes them: in order, in their own tenant, and none ends a reader."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any, NamedTuple, cast

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.catalog import UNENCODED, Item, ItemVector
from stream.adapters.models.onnx import TextEncoder
from stream.core.decode import Reject
from stream.core.ranking.items import decode
from stream.outbox import Outbox
from stream.serving import ServingState
from stream.settings import Settings
from tests.support.fakes import T0_MS, FakeModels
from workers.catalog import Catalog, Known

MUG = Item(item_id="mug", tenant="t", title="Red mug")


class Record(NamedTuple):
    key: bytes | None
    value: bytes | None
    offset: int = 0
    topic: str = "items"
    partition: int = 0
    timestamp: int = T0_MS


class CountingEncoder:
    """A vector a text, and how many texts were asked for."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode(self, texts: list[str]) -> Any:
        self.texts += texts
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)


class Written(Catalog):
    """A catalog whose topics are a list."""

    def __init__(self, space: str = "s") -> None:
        self.encoding, self.read = CountingEncoder(), Known()
        encoder = None if space == UNENCODED else cast(TextEncoder, self.encoding)
        super().__init__(Settings(), space, encoder, cast(Any, None), self.read.vectors, ThreadPoolExecutor(1))
        self.sent: list[tuple[str, bytes, bytes | None]] = []

    async def _send(self, outbox: Outbox) -> None:
        self.sent += [(topic.entity, one.key, one.value) for topic, records in outbox.records.values() for one in records]

    def reader(self) -> ServingState:
        """What a personalize worker makes of it."""
        state = ServingState()
        for entity, key, value in self.sent:
            if entity == "item-vectors":
                state.on_vector(key, value)
        return state


def put(item: Item) -> Record:
    return Record(f"{item.tenant}/{item.item_id}".encode(), msgspec.json.encode(item))


REMOVED = Record(b"t/mug", None)


@pytest.mark.parametrize(
    ("records", "left"),
    [([put(MUG), REMOVED], []), ([REMOVED, put(MUG)], [("t", "mug")]), ([put(MUG), REMOVED, put(MUG)], [("t", "mug")])],
)
async def test_an_item_put_and_removed_in_one_poll_ends_as_it_was_said_last(
    records: list[Record], left: list[tuple[str, str]]
) -> None:
    catalog = Written()
    await catalog.handle(records)
    assert list(catalog.reader().vectors) == left


BAD = [
    Record(b"mug", None),
    Record(b"\xff/mug", None),
    Record(b"#complete/mug", None),
    Record(b"t/", None),
    put(msgspec.structs.replace(MUG, tenant="a/b")),  # would land in tenant "a"
    Record(b"t/cup", msgspec.json.encode(MUG)),  # its removal would leave the mug
    Record(b"t/mug", b"{"),
    Record(b"t/mug", b"\xff"),
    Record(b"t/mug", b'{"item_id": "mug", "tenant": "t", "title": 5}'),
    Record(b"t/mug", b'{"item_id": "mug", "tenant": "t", "x": ' + b"[" * 5_000 + b"]" * 5_000 + b"}"),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda one: repr(one.key))
async def test_a_bad_record_becomes_one_dead_letter_and_its_neighbours_go_on(bad: Record) -> None:
    catalog = Written()
    cup = msgspec.structs.replace(MUG, item_id="saucer", title="Saucer")
    await catalog.handle([bad, put(cup)])
    letters = [msgspec.json.decode(value or b"") for entity, _, value in catalog.sent if entity == "dead-letters"]
    assert len(letters) == 1 and letters[0]["failure"]["messages"][0]["message"]
    assert list(catalog.reader().vectors) == [("t", "saucer")]


@given(key=st.binary(max_size=40) | st.none(), value=st.binary(max_size=60) | st.none())
def test_decode_is_total(key: bytes | None, value: bytes | None) -> None:
    decoded = decode(key, value)
    if not isinstance(decoded, Reject):
        tenant, item_id = (key or b"").decode().split("/", 1)
        assert tenant and item_id and not tenant.startswith("#")
        assert decoded is None or (decoded.tenant, decoded.item_id) == (tenant, item_id)


async def test_one_text_is_encoded_once_and_no_text_gives_an_empty_vector() -> None:
    catalog = Written()
    twin, bare = msgspec.structs.replace(MUG, item_id="mug2", price=3.0), Item(item_id="bare", tenant="t")
    await catalog.handle([put(MUG), put(twin), put(bare)])
    await catalog.handle([put(msgspec.structs.replace(MUG, in_stock=False))])
    assert catalog.encoding.texts == [MUG.text()]
    vectors = [msgspec.msgpack.decode(value or b"", type=ItemVector) for _, _, value in catalog.sent]
    assert vectors[0].vector == vectors[1].vector == vectors[3].vector != b"" and vectors[2].vector == b""
    assert [one.item.in_stock for one in vectors] == [True, True, True, False]


async def test_what_the_fleet_has_encoded_is_not_encoded_again() -> None:
    first, second = Written(), Written()
    await first.handle([put(MUG)])
    second.read.on_vectors([Record(key, value) for _, key, value in first.sent])
    await second.handle([put(MUG)])
    assert second.encoding.texts == [] and second.sent == first.sent


async def test_without_an_encoder_items_go_on_as_they_are() -> None:
    catalog = Written(UNENCODED)
    await catalog.handle([put(MUG), put(msgspec.structs.replace(MUG, item_id="cup", blocked=True)), REMOVED])
    assert catalog.encoding.texts == []
    assert [key for _, key, _ in catalog.sent] == [b"unencoded/t/mug", b"unencoded/t/cup", b"unencoded/t/mug"]
    index = ServingState()
    for _, key, value in catalog.sent:
        if (told := index.on_vector(key, value)) is not None:
            index.current.put_items([told])
    shop = index.current.index("t")
    assert shop.item("cup") == Item(item_id="cup", tenant="t", title="Red mug", blocked=True)
    assert not shop.recommendable.any()  # the one is removed, the other blocked


def shop_of(state: ServingState) -> dict[str, str]:
    """Items a shop can recommend, with the titles they have."""
    index = state.current.index("t")
    return {name: (index.item(name) or MUG).title for name, yes in zip(index.ids, index.recommendable, strict=True) if yes}


@given(
    titles=st.lists(st.none() | st.sampled_from(["Red mug", "Blue mug", "Mug"]), min_size=1, max_size=6),
    released_after=st.integers(0, 6), random=st.randoms(use_true_random=False),
)  # fmt: skip
def test_readers_end_with_the_catalog_as_it_is_whoever_is_ahead(
    titles: list[str | None], released_after: int, random: Random
) -> None:
    """Each space is written at its own pace, that of items as they are until something is released; readers read the two
    in any order, and take the release over at any time after it. A title of None removes the item."""
    records = [REMOVED if title is None else put(msgspec.structs.replace(MUG, title=title)) for title in titles]
    plain, encoded = Written(UNENCODED), Written()
    encoded.sent = plain.sent  # one topic, in the order in which they write
    before = records[:released_after]
    turns = [plain] * len(before) + [encoded] * len(before)
    random.shuffle(turns)
    at = {id(plain): iter(before), id(encoded): iter(before)}
    for one in turns:
        asyncio.run(one.handle([next(at[id(one)])]))
    for record in records[released_after:]:
        asyncio.run(encoded.handle([record]))
    state, released = ServingState(), False
    logs = {space: [(key, value) for _, key, value in plain.sent if key.startswith(f"{space}/".encode())]
            for space in ("s", UNENCODED)}  # fmt: skip
    while any(logs.values()):
        released = released or random.random() < 0.2
        if released and state.current.models is None:
            state.current = state.prepare(FakeModels(dim=2))
        key, value = random.choice([one for one in logs.values() if one]).pop(0)
        if (told := state.on_vector(key, value)) is not None:
            state.current.put_items([told])
    if state.current.models is None:
        state.current = state.prepare(FakeModels(dim=2))
    last = titles[-1]
    # a tenant of which the catalog names nothing has no rules: nothing is in its index then
    assert shop_of(state) == ({} if last is None else {"mug": last})
    row = state.current.index("t").row_of.get("mug")
    assert last is None or state.current.index("t").matrix[row].any()  # and with its vector


@pytest.mark.parametrize("other", ["an earlier space", "the next one"])
def test_what_the_catalog_removes_is_gone_although_another_space_has_it_still(other: str) -> None:
    """One that is out of use is tombstoned by nobody; of one that is still written its own worker comes to it later."""
    state = ServingState()
    state.current = state.prepare(cast(Any, FakeModels()))
    for space, name in (("s", "i"), (other, "i"), ("s", "j")):
        value = msgspec.msgpack.encode(ItemVector(space=space, content_hash="h", vector=b"\0" * 16,
                                                  item=Item(item_id=name, tenant="t", title="x")))  # fmt: skip
        if (told := state.on_vector(f"{space}/t/{name}".encode(), value)) is not None:
            state.current.put_items([told])
    index = state.current.index("t")
    assert index.sells("i") and index.sells("j")
    for space in ("s", UNENCODED):
        state.on_vector(f"{space}/t/i".encode(), None)
    assert not index.sells("i") and index.sells("j")
