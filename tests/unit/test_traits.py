"""Traits of users and properties of a shop's own events, as far as rules of segments ask for them."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from clickwake.cli import app
from schemas.erasure import subject
from schemas.events import Event
from stream.core.ranking.counts import CountsPolicy, PartitionCounts
from stream.core.segments.segment_fields import values_of
from stream.core.segments.segment_history import SegmentHistory
from stream.core.segments.segment_rules import Rule, Rules, RulesError, RulesFile, compiled
from stream.core.segments.segments import members
from stream.core.user import identity
from stream.core.user.fold import Outcome, fold
from stream.core.user.replay import Recorded
from stream.core.user.state import ACTIVITY_CHARS_MAX, DAY_MS, Trait, UserState
from stream.core.user.traits import NAMES_MAX, NOTHING_SAID, Names, Said, described, let_go
from tests.support.fakes import T0_MS, FakeModels, event
from tests.unit.test_forgetting import IDENTITY, erasure, told
from tests.unit.test_personalize import Bench

NAMES = Names(frozenset({"plan", "age", "vip"}), frozenset({"size", "score"}))
WHENS = {
    "pros": "trait('plan') == 'pro'", "adults": "number(trait(\"age\")) >= 18", "unknown": "trait('plan') == ''",
    "vips": "trait('vip') == 'true' and trait('plan') in ['pro', 'team']",
    "large": "count('Size Chosen', property('size') == 'XL' and number(property('score')) > 2, days=7) >= 1",
}  # fmt: skip


def rules(**whens: str) -> Rules:
    return compiled(RulesFile(lifecycle=False, segments=tuple(Rule(name=name, when=when) for name, when in whens.items())))


def said(kind: str = "identify", at_ms: int = 0, **more: Any) -> dict[str, Any]:
    name = more.pop("name", None)
    return event(ts_ms=T0_MS + at_ms, type=kind, name=name, item=None, id=f"{kind}{at_ms}{name}", **more)  # type: ignore[arg-type]


def taken(state: UserState, *rows: dict[str, Any], names: Names = NAMES) -> UserState:
    for row in rows:
        one = msgspec.convert(row, Event)
        outcome, _ = fold(state, one, T0_MS, DAY_MS, described(one, msgspec.json.encode(row), names))
        assert outcome is Outcome.FOLDED
    return state


def inside(state: UserState, known: Rules) -> list[str]:
    return known.inside("t", values_of(state, T0_MS + DAY_MS, 0.0, known.measures, traits=known.kept.traits))


def test_rules_ask_for_traits_and_properties_and_name_what_is_kept() -> None:
    known = rules(**WHENS)
    assert known.kept == NAMES and known.never() == []
    state = taken(UserState(), said(traits={"plan": "pro", "age": 42, "email": "a@shop.example"}))
    assert inside(state, known) == ["pros", "adults"]
    assert {name: one.text for name, one in state.traits.items()} == {"plan": "pro", "age": "42"}, "no rule asks for more"
    taken(state, said("track", 1, name="Size Chosen", properties={"size": "XL", "score": 2.5, "email": "a@shop.example"}),
          said("track", 2, name="Page Liked", context={"traits": {"vip": True}}))  # fmt: skip
    assert inside(state, known) == ["pros", "adults", "vips", "large"]
    assert [one.properties for one in state.activities] == [{"size": "XL", "score": "2.5"}, None]
    assert inside(UserState(), known) == ["unknown"]
    assert known.read_by("pros") == known.read_by("adults") == [], "what somebody said of themselves is in no output"
    assert inside(taken(UserState(), said(traits={"age": "seventeen"})), known) == ["unknown"], "what is no number"


def test_of_two_statements_the_later_one_stands_in_whatever_order_they_come() -> None:
    rows = [said(traits={"plan": "free"}), said(at_ms=1, traits={"plan": "pro", "age": 1}),
            said(at_ms=2, traits={"age": None})]  # fmt: skip
    for order in permutations(rows):
        state = taken(UserState(), *order)
        assert {name: one.text for name, one in state.traits.items()} == {"plan": "pro", "age": ""}


@pytest.mark.parametrize(("row", "kept"), [
    (said(traits={"plan": "x" * 200}), {"plan": "x" * ACTIVITY_CHARS_MAX}),
    (said(traits={"plan": ["pro"], "age": {"years": 1}, "vip": False}), {"vip": "false"}),
    (said(traits=["plan"]), {}), (said(traits="plan"), {}), (said(), {}),
    (said(context={"traits": 7}, traits={"plan": "pro"}), {"plan": "pro"}),
    (said(context={"traits": {"plan": "old", "age": 3}}, traits={"plan": "pro"}), {"plan": "pro", "age": "3"}),
    (said("group", groupId="g", traits={"plan": "team"}), {}),
    (said("track", name="Page Liked", traits={"plan": "pro"}), {}),
    (said(traits={"plan": "pro"}, context={"consent": {"analytics": False}}), {}),
])
def test_what_is_kept_of_what_comes(row: dict[str, Any], kept: dict[str, str]) -> None:
    found = described(msgspec.convert(row, Event), msgspec.json.encode(row), NAMES)
    assert dict(found.traits) == kept


@pytest.mark.parametrize("value", [
    b'"\xff"', b'"\\ud800"', b"[" * 5_000 + b"]" * 5_000, b"1e400", b"9" * 5_000, b"NaN", b'{"a": 1}', b"[",
])
async def test_what_cannot_be_read_is_not_kept_and_ends_no_worker(tmp_path: Path, value: bytes) -> None:
    """Where it stands in a part of an event that nobody read before a rule asked for it."""
    path = tmp_path / "segments.yml"
    when = 'trait("plan") == "pro" or count("Page Liked", property("size") == "") > 9'
    path.write_text(f"segments: [{{name: pros, when: '{when}'}}]")
    bench = Bench(FakeModels(), rules=path)
    bench.items()
    for row in (said(traits={"plan": "?"}), said("track", 1, name="Page Liked", properties={"size": "?"}),
                said("track", 2, name="Page Liked", context={"traits": {"plan": "?"}})):  # fmt: skip
        await bench.feed(msgspec.json.encode(row).replace(b'"?"', value))
    await bench.close()
    state = bench.part.read(b"t/u")
    assert set(state.traits) <= {"plan"} and all(one.text == "" for one in state.traits.values())
    assert all(not one.properties for one in state.activities)
    await bench.feed(said(at_ms=9, traits={"plan": "pro"}))
    await bench.close()
    assert members(bench.part.read(b"t/u")) == ["lifecycle/new", "lifecycle/prospect", "pros"]


@pytest.mark.parametrize(("when", "complaint"), [
    ("trait() == 'pro'", 'write trait("name")'), ("trait(plan) == 'pro'", 'write trait("name")'),
    ("trait('') == 'pro'", 'write trait("name")'), ("trait('x' , 'y') == ''", 'write trait("name")'),
    ("trait('plan') > 3", "cannot be compared"), ("number(3) > 1", "wanted is a text"),
    ("property('size') == 'XL'", "the only functions are"),
    ("count('Product Viewed', property('size') == 'XL') > 0", "of one event's item"),
])
def test_what_is_wrong_is_said(when: str, complaint: str) -> None:
    with pytest.raises(RulesError) as refused:
        rules(x=when)
    assert complaint in str(refused.value)


def test_there_are_so_many_names_at_most() -> None:
    whens = {f"s{n}": f"trait('t{n}') == ''" for n in range(NAMES_MAX + 1)}
    with pytest.raises(RulesError, match=f"ask for {NAMES_MAX + 1} traits"):
        rules(**whens)
    del whens["s0"]
    assert len(rules(**whens).kept.traits) == NAMES_MAX


def test_of_a_tenants_users_nothing_is_kept_that_only_other_tenants_rules_name() -> None:
    known = compiled(RulesFile(segments=(
        Rule(name="pro", when="trait('plan') == 'pro'", tenant="t"),
        Rule(name="big", when="count('Size Chosen', property('size') == 'XL') > 0", tenant="other"),
        Rule(name="ours", when="trait('age') == '3'"),
    ), lifecycle=False))  # fmt: skip
    assert known.kept_of("t") == Names(frozenset({"plan", "age"}))
    assert known.kept_of("other") == Names(frozenset({"age"}), frozenset({"size"}))
    assert known.kept_of("third") == Names(frozenset({"age"})) and known.kept == Names(
        frozenset({"plan", "age"}), frozenset({"size"}))  # fmt: skip
    assert compiled(RulesFile(lifecycle=False, segments=tuple(
        Rule(name=f"{tenant} {n}", when=f"trait('{tenant}{n}') == ''", tenant=tenant)
        for tenant in ("t", "other") for n in range(NAMES_MAX)))).kept_of("t").traits, "each has so many"  # fmt: skip


def test_a_shared_device_forgets_what_was_said_in_the_time_of_who_is_erased() -> None:
    device = taken(UserState(), said(traits={"plan": "pro"}), said(at_ms=5, traits={"age": 3}))
    device.claims = [(T0_MS, "u"), (T0_MS + 9, "v")]
    assert identity.forget(device, "u") and list(device.traits) == ["age"]
    assert (device.claims, device.forgot_ms) == ([(T0_MS + 9, "v")], T0_MS)


def test_what_was_said_on_a_device_counts_for_whose_it_is() -> None:
    known, device = rules(pros=WHENS["pros"]), taken(UserState(), said(traits={"plan": "pro"}))
    user = taken(UserState(), said(at_ms=3, user="u"))
    device.claims = [(T0_MS + 4, "u")]
    (answer,) = identity.answers(device, "t", "a")
    assert identity.link(user, answer) and not identity.link(user, answer) and inside(user, known) == ["pros"]
    taken(device, said(at_ms=8, traits={"plan": "free"}))  # by who comes next
    device.claims = [(T0_MS + 4, "u"), (T0_MS + 9, "v")]
    mine, other = identity.answers(device, "t", "a")
    assert not identity.link(user, mine) and inside(user, known) == ["pros"] and other.traits["plan"].text == "free"
    assert inside(taken(user, said(at_ms=5, traits={"plan": "free"})), known) == [], "the later one stands"
    assert not let_go(user, known.kept) and let_go(user, Names()) and not (user.traits or user.linked_traits)
    assert identity.link(user, answer) and identity.forget(user, "a") and not user.linked_traits


async def test_it_is_kept_from_the_rule_on_and_let_go_with_it(tmp_path: Path) -> None:
    path = tmp_path / "segments.yml"
    path.write_text("{lifecycle: false, segments: [{name: buyers, when: orders > 0}]}")
    bench = Bench(FakeModels(), rules=path)
    bench.items()
    await bench.feed(said(traits={"plan": "pro"}))
    await bench.close()
    assert bench.part.read(b"t/u").traits == {}
    path.write_text("{lifecycle: false, segments: [{name: pros, when: 'trait(\"plan\") == \"pro\"'}]}")
    await bench.feed(event(ts_ms=T0_MS + 1))
    await bench.close()  # takes the file over
    await bench.feed(said(at_ms=2, traits={"plan": "pro", "age": 3}))
    await bench.close()
    (entered,) = bench.outputs.values("segment-changes")
    assert (entered["segment"], entered["change"], entered["values"]) == ("pros", "entered", {})
    again = bench.opened(PartitionCounts(CountsPolicy()))
    assert members(again.read(b"t/u")) == ["pros"] and again.read(b"t/u").traits["plan"].text == "pro"
    path.write_text("{lifecycle: false, segments: [{name: buyers, when: orders > 0}]}")
    bench.part.unsorted[b"t/u"] = True  # what a sweep does
    await bench.close()
    assert bench.opened(PartitionCounts(CountsPolicy())).read(b"t/u").traits == {}


async def test_what_was_said_before_a_rule_was_there_is_recalled(tmp_path: Path) -> None:
    path, pros = tmp_path / "segments.yml", '{lifecycle: false, segments: [{name: pros, when: \'trait("plan") == "pro"\'}]}'
    bench = Bench(FakeModels(), rules=path)
    bench.items()
    taken_ms = bench.appended_ms
    await bench.feed(said(traits={"plan": "pro", "age": 3}))
    await bench.close()

    async def recall(user: str, *told: Said) -> list[str]:
        await bench.feed(identity.encode(identity.Recall("t", user, told)), source=IDENTITY)
        await bench.close()
        return members(bench.part.read(f"t/{user}".encode()))

    plan, age = Said("plan", Trait(T0_MS, 7, "pro"), taken_ms), Said("age", Trait(T0_MS, 7, "3"), taken_ms)
    assert await recall("u", plan) == [], "no rule asks for it"
    path.write_text(pros)
    before = msgspec.structs.replace(plan, append_ms=taken_ms - 1)
    assert await recall("u", before) == [], "the broker took it before this profile began"
    assert await recall("u", plan, age) == ["pros"], "the file is looked at right then"
    state = bench.opened(PartitionCounts(CountsPolicy())).read(b"t/u")
    assert {name: one.text for name, one in state.traits.items()} == {"plan": "pro"}
    await bench.feed(said(at_ms=1, traits={"plan": "free"}))
    assert await recall("u", plan) == [], "what was said later stands"
    assert [one["change"] for one in bench.outputs.values("segment-changes")] == ["entered", "left"]
    assert await recall("nobody", plan) == [] and not bench.part.read(b"t/nobody").traits
    bench.erasures.note(subject(b"t/u"), erasure(T0_MS + 5))
    for at_ms, is_in in ((4, []), (6, ["pros"])):
        assert await recall("u", Said("plan", Trait(T0_MS + at_ms, 7, "pro"), taken_ms)) == is_in, "erased up to 5"


@pytest.mark.parametrize("erased", [False, True])
async def test_what_was_said_on_a_shared_device_by_who_was_forgotten_is_not_recalled(tmp_path: Path, erased: bool) -> None:
    """The device's rows stay, so that a backfill tells of them; nobody else gets it. What was said later is recalled."""
    path = tmp_path / "segments.yml"
    path.write_text('{lifecycle: false, segments: [{name: pros, when: \'trait("plan") == "pro"\'}]}')
    bench = Bench(FakeModels(), rules=path)
    guest: dict[str, Any] = {"user": "", "userId": None, "anonymousId": "d"}
    taken_ms = bench.appended_ms
    await bench.feed(said(traits={"plan": "pro"}, **guest))
    await bench.feed(event(user="u", anonymousId="d", item=None, ts_ms=T0_MS + 1, id="u1"))
    await bench.feed(event(ts_ms=T0_MS + 2, id="d2", item=None, **guest),
                     event(user="v", anonymousId="d", item=None, ts_ms=T0_MS + 4, id="v1"))  # fmt: skip
    await hear(bench)
    if erased:
        bench.erasures.note(subject(b"t/u"), erasure(T0_MS + 5, user_id="u"))
        await bench.feed(identity.encode(identity.Erase("t", "u")), source=IDENTITY)
    else:
        await bench.feed(event(user="u", ts_ms=T0_MS + 5, id="u2", context={"consent": {"personalization": False}}))
    await hear(bench)
    assert not bench.part.read(b"t/d").traits and bench.part.read(b"t/d").claims == [(T0_MS + 4, "v")]
    for at_ms, known in ((0, {}), (3, {"d": {"plan": Trait(T0_MS + 3, 7, "pro")}})):
        one = Said("plan", Trait(T0_MS + at_ms, 7, "pro"), taken_ms)
        await bench.feed(identity.encode(identity.Recall("t", "d", (one,))), source=IDENTITY)
        await hear(bench)
        assert bench.part.read(b"t/v").linked_traits == known


async def hear(bench: Bench) -> None:
    await told(bench)
    await bench.close()


def test_the_past_of_a_rule_has_what_was_said_then() -> None:
    known = rules(pros=WHENS["pros"], large=WHENS["large"])
    rows = [said(traits={"plan": "free"}), said(at_ms=5, traits={"plan": "pro"}),
            said("track", 9, name="Size Chosen", properties={"size": "XL", "score": 3}),
            said(at_ms=20, traits={"plan": None})]  # fmt: skip
    events = [msgspec.convert(row, Event) for row in rows]
    history = SegmentHistory("t", known)
    history.replay.follow([Recorded(one, described(one, msgspec.json.encode(row), known.kept))
                           for one, row in zip(events, rows, strict=True)])  # fmt: skip
    turns = history.finish(T0_MS + 30 * DAY_MS)["u"]
    assert [(turn.segment, turn.at_ms - T0_MS, turn.entered) for turn in turns] == [
        ("pros", 5, True), ("large", 9, True), ("pros", 20, False), ("large", 9 + 7 * DAY_MS + 1, False)]  # fmt: skip


def test_the_check_of_a_file_says_what_is_kept_for_it(tmp_path: Path) -> None:
    path = tmp_path / "segments.yml"
    path.write_text(f"segments: [{{name: pros, when: \"{WHENS['pros']}\"}}, {{name: large, when: \"{WHENS['large']}\"}}]")
    done = CliRunner().invoke(app, ["segments", "check", str(path)])
    assert done.exit_code == 0 and "for these rules, traits: plan; properties: score, size" in done.stdout
    told = msgspec.json.decode(CliRunner().invoke(app, ["segments", "check", str(path), "--json"]).stdout)
    assert told["kept"] == {"traits": ["plan"], "properties": ["score", "size"]}


def test_without_rules_nothing_is_read() -> None:
    assert described(msgspec.convert(said(), Event), b"no JSON", Names()) is NOTHING_SAID
