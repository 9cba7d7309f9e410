"""One request from the list to its receipt, on fakes: which ids are erased, in which order, and what a crash leaves."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from schemas.erasure import Done, Erased, Erasure, Receipt, subject
from schemas.events import key
from stream.erasure import eraser
from stream.erasure.eraser import Eraser
from stream.settings import Settings

AT = datetime(2026, 11, 20, 12, tzinfo=UTC)
REQUEST = Erasure(erasure_id="e1", tenant="t", requested_at=AT, user_id="u")
WHOSE, DEVICE = (subject(key("t", one)) for one in ("u", "d"))


class World:
    """What outlives a crash of the erasure worker: the list, the owners of states, and the tables."""

    def __init__(self, *, known: Sequence[str] = (), shared: Sequence[str] = (), joined: Sequence[str] = ("d",)) -> None:
        self.known, self.others, self.joined = list(known), list(shared), list(joined)
        self.written: list[tuple[bytes, Erasure]] = [(WHOSE, REQUEST)]
        self.done: list[tuple[str, ...]] = []  # what each step was done for
        self.fails_at = -1

    def listed(self) -> Erased:
        found = Erased()
        for one in self.written:
            found.note(*one)
        return found

    def request(self) -> Erasure | None:
        return self.listed().request(b"t/u")

    async def caught_up(self) -> None: ...

    def suppresses(self, user_key: bytes) -> bool:
        return self.listed().suppresses(user_key)

    def devices(self, erasure_id: str) -> list[str]:
        return self.listed().devices(erasure_id)


class Tables:
    """What is known of devices there."""

    def __init__(self, world: World) -> None:
        self.world = world

    def devices(self, user: str) -> list[str]:
        return self.world.known

    def shared(self, user: str, devices: Sequence[str]) -> list[str]:
        return [one for one in devices if one in self.world.others]

    def delete(self, ids: Sequence[str]) -> list[Done]:
        self.world.done.append(("rows", *ids))
        return [Done(place="ClickHouse events", did="rows deleted", records=len(ids))]

    def left(self, ids: Sequence[str]) -> int:
        return 0


class Bench(Eraser):
    """One start of the worker."""

    def __init__(self, world: World) -> None:
        nobody: Any = None
        super().__init__(Settings(), nobody, world)
        self.world = world

    async def note(self, entries: Sequence[tuple[bytes, Erasure]]) -> None:
        for one in entries:
            if self.world.fails_at == len(self.world.written):
                self.world.fails_at = -1
                raise ConnectionError("the broker is away")
            self.world.written.append(one)

    async def _forgotten(self, asked: Erasure, ids: Sequence[str]) -> None:
        self.world.done.append(("states", *ids))
        request = self.world.request()
        assert request is not None
        for one in self.world.joined if "u" in ids else ():
            if one not in request.devices:
                whose = key(asked.tenant, one)
                own = msgspec.structs.replace(request, user_id=None, devices=(one,), device=True,
                                              suppress=self.world.suppresses(whose))  # fmt: skip
                self.world.written.append((subject(whose), own))
        self.world.joined = []  # they are gone

    async def _stored(self) -> None:
        self.world.done.append(("stored",))


@pytest.fixture(autouse=True)
def tables(monkeypatch: pytest.MonkeyPatch) -> list[World]:
    """The world whose tables are meant is put in."""
    found: list[World] = []
    monkeypatch.setattr(eraser, "Rows", lambda *_, **__: Tables(found[0]))
    return found


def subjects(final: Erasure) -> list[bytes]:
    receipt = msgspec.json.decode(final.receipt or "", type=Receipt)
    return [b"t/" + one.encode() for one in receipt.subjects]


async def test_a_device_that_states_alone_know_is_erased_with_its_user(tables: list[World]) -> None:
    world = World()
    tables.append(world)
    final = await Bench(world).erase(REQUEST)
    assert world.done == [("states", "u"), ("stored",), ("states", "d"), ("stored",), ("rows", "u", "d")]
    assert subjects(final) == [WHOSE, DEVICE]
    last = dict(world.written)
    assert last[WHOSE] == final and last[DEVICE].device is True and last[DEVICE].devices == ()
    assert world.request() is None and world.devices("e1") == [], "nobody is named any more"


async def test_what_the_sink_has_still_stored_when_it_was_asked_for_first_names_devices_too(tables: list[World]) -> None:
    world = World(joined=())
    tables.append(world)
    bench = Bench(world)

    async def stored() -> None:
        world.known = ["late"]

    bench._stored = stored  # type: ignore[method-assign]
    assert subjects(await bench.erase(REQUEST)) == [WHOSE, subject(b"t/late")]
    assert world.done == [("states", "u"), ("states", "late"), ("rows", "u", "late")]


async def test_a_device_that_others_came_with_keeps_its_rows_and_no_name_stays_on_the_list(tables: list[World]) -> None:
    world = World(shared=["d"])
    tables.append(world)
    assert subjects(await Bench(world).erase(REQUEST)) == [WHOSE]
    assert world.done == [("states", "u"), ("stored",), ("rows", "u")] and world.devices("e1") == []


async def test_an_id_that_is_somebodys_account_too_is_neither_erased_nor_suppressed(tables: list[World]) -> None:
    world = World(known=["own"], shared=["w"], joined=("w",))
    tables.append(world)
    asked = msgspec.structs.replace(REQUEST, suppress=True)
    world.written = [(WHOSE, asked)]
    assert subjects(await Bench(world).erase(asked)) == [WHOSE, subject(b"t/own")]
    assert [world.suppresses(one) for one in (b"t/u", b"t/own", b"t/w")] == [True, True, False]


async def test_a_user_who_came_as_their_own_device_is_erased_once(tables: list[World]) -> None:
    """Else the device's entry would end the request, which is under the same name."""
    world = World(known=["u"])
    tables.append(world)
    final = await Bench(world).erase(REQUEST)
    assert subjects(final) == [WHOSE, DEVICE] and final.device is msgspec.UNSET
    assert world.done == [("states", "u"), ("stored",), ("states", "d"), ("stored",), ("rows", "u", "d")]
    assert [one.device for whose, one in world.written if whose == WHOSE] == [msgspec.UNSET] * 3


@pytest.mark.parametrize("fails_at", [1, 2, 4, 5, 6])  # the third is what the owner of a state says
async def test_a_crash_at_any_record_leaves_no_device_to_nobody(tables: list[World], fails_at: int) -> None:
    world = World(known=["own"])
    tables.append(world)
    world.fails_at = fails_at
    with pytest.raises(ConnectionError):
        await Bench(world).erase(REQUEST)
    request = world.request()
    assert request is not None
    final = await Bench(world).erase(request)
    assert sorted(subjects(final)) == sorted([WHOSE, DEVICE, subject(b"t/own")])
    assert world.done[-1][0] == "rows" and {*world.done[-1][1:]} == {"u", "d", "own"}
    assert world.devices("e1") == [] and world.request() is None


async def test_a_lift_that_comes_while_devices_are_looked_for_is_not_undone(tables: list[World]) -> None:
    world = World()
    tables.append(world)
    asked = msgspec.structs.replace(REQUEST, suppress=True)
    world.written = [(WHOSE, asked), (WHOSE, msgspec.structs.replace(asked, erasure_id="e2", suppress=False, user_id=None))]
    final = await Bench(world).erase(asked)
    assert not final.suppress and not world.suppresses(b"t/u") and not world.suppresses(b"t/d")
