"""The store alone: what a reopening keeps, and each reason to begin again."""

from __future__ import annotations

import logging
import multiprocessing
from pathlib import Path

import pytest

from stream.adapters.state.state_store import (
    LOGS_BYTES,
    NO_OFFSET,
    SHARED,
    WRITE_BUFFER_BYTES,
    WRITE_BUFFERS_BYTES,
    Identity,
    PartitionStore,
    StoreCorrupt,
    StoreLocked,
    directory,
)
from stream.settings import Settings
from tests.support.cluster import until

DAY_MS = 86_400_000
NOW_MS = 1_800_000_000_000


def identity(topic_id: str = "t-1", now_ms: int = NOW_MS) -> Identity:
    return Identity(topic_id=topic_id, delete_retention_ms=DAY_MS, now_ms=now_ms)


def filled(path: Path, users: int = 3) -> None:
    store = PartitionStore.open(path, identity())
    store.write({b"shop/u%04d" % user: b"state %d" % user for user in range(users)}, 41, NOW_MS)
    store.close()


def test_values_and_offset_are_there_after_reopening(tmp_path: Path) -> None:
    filled(tmp_path / "s")
    store = PartitionStore.open(tmp_path / "s", identity(now_ms=NOW_MS + DAY_MS // 2))
    assert store.wiped is None
    assert store.changelog_offset == 41
    assert store.get_many([b"shop/u0002", b"nobody", b"shop/u0000"]) == [b"state 2", None, b"state 0"]
    assert store.get_many([]) == []
    store.write({b"shop/u0000": None, b"shop/u0001": b"new"}, 43, NOW_MS)
    assert store.get_many([b"shop/u0000", b"shop/u0001"]) == [None, b"new"]
    store.close()
    store.close()


def test_iterate_gives_the_keys_of_a_prefix_in_order_and_nothing_of_ours(tmp_path: Path) -> None:
    store = PartitionStore.open(tmp_path / "s", identity())
    keys = [b"b/2", b"a/1", b"b/1", b"\x00odd", b"b0", b"c/1", b"store"]
    store.write(dict.fromkeys(keys, b"x"), 0, NOW_MS)
    assert [key for key, _ in store.iterate(b"b/")] == [b"b/1", b"b/2"]
    assert [key for key, _ in store.iterate()] == sorted(keys)
    store.close()


def test_the_logs_of_a_store_that_is_written_for_long_stay_short(tmp_path: Path) -> None:
    """What a start after a kill has to read again."""
    store = PartitionStore.open(tmp_path / "s", identity())
    for offset in range(120):
        store.write({b"shop/u%04d" % user: bytes([offset]) * (1 << 20) for user in range(3)}, offset, NOW_MS)
    logs = list((tmp_path / "s").rglob("*.log"))
    sizes = [log.stat().st_size for log in logs if log.exists()]  # one may go meanwhile
    assert sizes and sum(sizes) <= LOGS_BYTES + 4 * WRITE_BUFFER_BYTES
    store.close()


def test_many_stores_hold_no_more_in_their_write_buffers_than_the_process_may(tmp_path: Path) -> None:
    """None of them alone would flush before it has 16 MB: a worker that owns many partitions held that much of each."""
    before = SHARED["write buffers"]()
    stores = [PartitionStore.open(tmp_path / f"s{number}", identity()) for number in range(20)]
    for offset in range(10):
        for store in stores:
            store.write({b"shop/u%04d" % offset: bytes(1 << 20)}, offset, NOW_MS)
    # What is being flushed counts until the disk has it, and no writer waits; left alone, it would be 200 MB for ever.
    until(lambda: SHARED["write buffers"]() - before < WRITE_BUFFERS_BYTES + 2 * WRITE_BUFFER_BYTES, 60, "flushed stores")
    assert SHARED["write buffers"]() - before > WRITE_BUFFER_BYTES
    for store in stores:
        assert store.get_many([b"shop/u0000", b"shop/u0009"]) == [bytes(1 << 20)] * 2
        store.close()
    del stores, store
    assert SHARED["write buffers"]() == before


def test_a_new_store_stands_for_nothing(tmp_path: Path) -> None:
    store = PartitionStore.open(tmp_path / "deep" / "s", identity())
    assert (store.wiped, store.changelog_offset, list(store.iterate())) == (None, NO_OFFSET, [])
    store.drop()
    assert not store.path.exists()
    with pytest.raises(ValueError, match="is closed"):
        store.get_many([b"a"])


def test_the_offset_never_goes_back(tmp_path: Path) -> None:
    filled(tmp_path / "s")
    store = PartitionStore.open(tmp_path / "s", identity())
    with pytest.raises(ValueError, match="claim less"):
        store.write({b"a": b"b"}, 40, NOW_MS)
    assert store.get_many([b"a"]) == [None]
    store.close()


@pytest.mark.parametrize(("opened_as", "why"), [
    (identity(topic_id="t-2"), "made again"),
    (identity(now_ms=NOW_MS + DAY_MS // 2 + 1), "erased users could come back"),
])
def test_a_store_that_cannot_be_trusted_is_wiped(tmp_path: Path, caplog: pytest.LogCaptureFixture, opened_as: Identity,
                                                 why: str) -> None:
    filled(tmp_path / "s")
    with caplog.at_level(logging.WARNING):
        store = PartitionStore.open(tmp_path / "s", opened_as)
    assert store.wiped is not None
    assert why in store.wiped
    assert why in caplog.text
    assert (store.changelog_offset, list(store.iterate())) == (NO_OFFSET, [])
    store.write({b"a": b"b"}, 0, opened_as.now_ms)
    store.close()
    again = PartitionStore.open(tmp_path / "s", opened_as)
    assert (again.wiped, again.changelog_offset) == (None, 0)
    again.close()


def test_touch_keeps_an_idle_store_from_growing_old(tmp_path: Path) -> None:
    filled(tmp_path / "s")
    store = PartitionStore.open(tmp_path / "s", identity())
    store.touch(NOW_MS + DAY_MS)
    store.close()
    store = PartitionStore.open(tmp_path / "s", identity(now_ms=NOW_MS + DAY_MS + 1))
    assert (store.wiped, store.changelog_offset) == (None, 41)
    store.close()


@pytest.mark.parametrize("damage", ["CURRENT", "MANIFEST", "OPTIONS", ".sst missing", ".sst cut"])
def test_a_damaged_store_is_wiped_or_intact_never_wrong(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "s"
    filled(path, users=2_000)
    filled_again = PartitionStore.open(path, identity())  # opening writes what the log held into a table file
    filled_again.close()
    name, _, how = damage.partition(" ")
    for file in [file for file in (path / "db").iterdir() if name in file.name]:
        if how == "missing":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    store = PartitionStore.open(path, identity())
    try:
        values = store.get_many([b"shop/u%04d" % user for user in range(2_000)])
        if store.wiped is None:
            assert values == [b"state %d" % user for user in range(2_000)]
            assert store.changelog_offset == 41
    except StoreCorrupt:
        store.close()
        store = PartitionStore.open(path, identity())
        assert store.wiped is not None
        assert "a read had failed" in store.wiped
        assert list(store.iterate()) == []
    finally:
        store.close()


def _hold(path: Path, ready: multiprocessing.synchronize.Event, end: multiprocessing.synchronize.Event) -> None:
    store = PartitionStore.open(path, identity())
    ready.set()
    end.wait(30)
    store.close()


def test_a_store_open_elsewhere_is_left_alone(tmp_path: Path) -> None:
    filled(tmp_path / "s")
    context = multiprocessing.get_context("spawn")
    ready, end = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "s", ready, end))
    holder.start()
    try:
        assert ready.wait(30)
        with pytest.raises(StoreLocked, match="another process"):
            PartitionStore.open(tmp_path / "s", identity())
    finally:
        end.set()
        holder.join(30)
    store = PartitionStore.open(tmp_path / "s", identity())
    assert store.get_many([b"shop/u0000"]) == [b"state 0"]
    store.close()


def test_each_partition_of_each_installation_has_its_own_folder(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    assert directory(settings, "personalize", 3) == tmp_path / "state" / "clickwake" / "personalize-00003"
