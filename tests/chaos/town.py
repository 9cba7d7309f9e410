"""What the chaos tests share: a stream of live events, workers that are killed, and the truth they must end in."""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from bisect import bisect_left
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import msgspec

from schemas import topics
from schemas.catalog import Item
from schemas.dead_letter import DeadLetter
from schemas.events import Event
from schemas.outputs import ChurnAlert, Recommendation, Reminder, SegmentChange, output_id
from stream.adapters.database import clickhouse
from stream.adapters.health.lag import Lag
from stream.core.segments.segment_fields import values_of
from stream.core.segments.segments import members
from stream.core.survival.repurchase import FEATURES, Repurchase
from stream.core.user.state import DAY_MS, Alert
from stream.segments import load
from stream.settings import Settings
from tests.support import recount as by_hand
from tests.support.bundles import LAPSE_DAYS
from tests.support.cluster import (
    Sender,
    Tail,
    accounts,
    assert_counts_are_true,
    assert_states_are_true,
    comparable,
    lag,
    read_all,
    start_worker,
    stored_states,
    until,
)
from tests.support.fakes import event

FULL = os.environ.get("CLICKWAKE_CHAOS") == "full"  # `make chaos`; else the short form
USERS, ITEMS = 120, 40
ODD = {"behind": -DAY_MS, "ahead": DAY_MS, "late": -3 * DAY_MS, "shy": 0}  # kinds of users: how far their clocks are off, ms
EACH_ODD = 4  # users of each of these kinds
PORTION = 20  # events sent at once
QUIET = 20  # users of `soon_silent`
DEVICES = 6  # each of two users: the first and the second one to say that it is theirs
RULES = """lifecycle: false
clusters: false
segments:
  - {name: regulars, when: events >= 5}
  - {name: buyers, when: orders >= 2}
"""  # whoever is in stays in, but for who withdraws
RULED = "CLICKWAKE_SEGMENTS__RULES"  # workers take the file from there
NO_EVENT = b"{"  # what a client sends now and then
TEA = Item(item_id="tea", tenant="t", title="tea")  # what reminders are about
REPURCHASE = Repurchase(weights=(0.0,) * len(FEATURES), constant=0.0, shape=1.0, usual_days=30.0)  # for everybody
CONSUMING_AGAIN_S = 30.0  # after a crash
ANSWERED_S = 30.0  # after the last event is folded: an interval between two recommendations, and a busy machine
UNDER_WAY_MS_MAX = 2_000  # the batch that a worker is at when its interval is over, and closing it, on a busy machine
ON_ITS_WAY_MS_MAX = 500  # what a worker that is gone had handed to the network reaches the broker within it


class Stream:
    """Live events as they come, a tenth of them twice, one in twenty some minutes late; a tenth on devices, by guests and by
    those who then say who they are; one in fifty each of users whose clocks are a day behind, a day ahead, or so far behind
    that their events are late, and of users who now and then withdraw their consent to a profile; and one record in a
    hundred that is no event. Seeded."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._made = 0
        self._recent: list[dict[str, Any]] = []

    def take(self, count: int) -> list[dict[str, Any] | tuple[bytes, bytes]]:
        """The next records, duplicates among them."""
        found: list[dict[str, Any] | tuple[bytes, bytes]] = []
        while len(found) < count:
            if self._draw.random() < 0.01:
                found.append((f"t/u{self._draw.randrange(USERS)}".encode(), NO_EVENT))
                continue
            if self._recent and self._draw.random() < 0.1:
                found.append(self._draw.choice(self._recent))
                continue
            user, off_ms = self._who()
            shy = user.startswith("shy")
            more: dict[str, Any] = {}
            if shy and self._draw.random() < 0.25:
                more = {"context": {"consent": {"personalization": False}}}
            elif off_ms == 0 and self._draw.random() < 0.1:
                device = self._draw.randrange(DEVICES)
                user = f"u{device + DEVICES * self._draw.randrange(2)}" if self._draw.random() < 0.5 else ""
                more = {"anonymousId": f"d{device}"} | ({} if user else {"userId": None})
            one = event(
                user=user, ts_ms=time.time_ns() // 1_000_000 + off_ms, lane="live",
                item=f"i{self._draw.randrange(ITEMS)}", id=f"m{self._made}",
                name=self._draw.choice(["Product Viewed", "Product Added", "Order Completed"]), **more,
            )  # fmt: skip
            self._made += 1
            found.append(one)
            if not shy:  # an event from before a withdrawal that comes again after it is said of again, rightly
                self._recent = [*self._recent[-200:], one]
        return found

    def _who(self) -> tuple[str, int]:
        """A user, and how far the time they give is off, ms."""
        kind = int(self._draw.random() * 50)
        if kind < len(ODD):
            return f"{list(ODD)[kind]}{self._draw.randrange(EACH_ODD)}", list(ODD.values())[kind]
        return f"u{self._draw.randrange(USERS)}", -self._draw.randrange(600_000) if self._draw.random() < 0.05 else 0


def start_crashing(settings: Settings, worker: str, point: str, times: int, home: Path) -> subprocess.Popen[bytes]:
    """A worker that is gone at a point, see `tests.chaos.crashing`."""
    return start_worker(settings, "tests.chaos.crashing", home, arguments=[worker, point, str(times)])


def caught_up(settings: Settings) -> bool:
    return lag(settings, "personalize", topics.EVENTS) == 0 and lag(settings, "personalize", topics.IDENTITY) == 0


def assert_town_is_true(settings: Settings) -> None:
    """Nothing folds alerts but the worker: what states say of them is compared with what is on their topic."""
    assert_states_are_true(settings, lambda state: comparable(msgspec.structs.replace(state, alert=Alert(), segments={})))
    assert_segments_are_true(settings)
    assert_counts_are_true(settings)
    standing = {one.user_id: one.state == "raised" for one in alerts(read_all(settings, topics.CHURN_ALERTS))}
    held = {key.decode().removeprefix("t/") for key, state in stored_states(settings).items()
            if state.alert.raised and not state.alert.silenced}  # fmt: skip
    assert held == {user for user, raised in standing.items() if raised}
    assert_the_recount_agrees(settings)


def recount(settings: Settings) -> by_hand.Recount:
    """The log of events, counted by hand."""
    return by_hand.recount(read_all(settings, topics.EVENTS), settings.personalize)


def assert_the_recount_agrees(settings: Settings) -> None:
    """What became of the records of each partition, how much each user did, and which records are dead letters are what
    counting the log by hand gives: what is no event, or ahead of the broker's clock, and nothing else."""
    true = recount(settings)
    assert {partition: one.ends for partition, one in accounts(settings).items()} == true.ends
    found = {key.decode(): (one.events, one.orders, one.first_ts_ms, one.last_ts_ms, one.last_event_id,
                            {item: stat.touches for item, stat in one.items.items()})
             for key, one in stored_states(settings).items() if one.events}  # fmt: skip  # else of a device, who claims it
    assert found == {key: (one.events, one.orders, one.first_ms, one.last_ms, one.newest, dict(one.touches))
                     for key, one in true.users.items()}  # fmt: skip
    letters = [msgspec.json.decode(record.value, type=DeadLetter) for record in read_all(settings, topics.DEAD_LETTERS)]
    assert {(one.source.partition, one.source.offset) for one in letters} == true.rejected
    assert {(said.path, said.keyword) for one in letters for said in one.failure.messages} <= {
        ("timestamp", "maximum"), ("", "json")}  # fmt: skip


def assert_every_user_is_answered(settings: Settings) -> None:
    """Soon after all is folded, while a worker runs, the last recommendation of every live user names the newest event that
    is known of them: nothing that was owed was forgotten.

    Nobody is owed one who has no profile (consent withdrawn since), or whose live events were all late or rejected, or who
    has none but imported ones. Everybody else is answered, also without a model, a catalog or a history: then degraded. An
    anonymous id that was claimed goes on being answered under its own key. A partition lets users go above OWED_USERS_MAX;
    there are not as many here.
    """
    users = recount(settings).users
    owed = {key: one.answers for key, one in users.items() if one.answers}
    deadline = time.monotonic() + ANSWERED_S
    with Tail(settings, topics.RECOMMENDATIONS) as said:
        while wrong := _unanswered(said.poll(), owed):
            assert time.monotonic() < deadline, f"{len(wrong)} of {len(owed)}; answered as of, and owed: {wrong[:3]}"
    assert owed
    until(lambda: not _misplaced(settings), ANSWERED_S, "everybody in the segments that rules put them in")


def _misplaced(settings: Settings) -> dict[str, tuple[list[str], list[str]]]:
    """User → the segments that their state names, and those that the rules do, where these differ."""
    if RULED not in os.environ:
        return {}
    rules = load(Path(os.environ[RULED]))
    found = {key.decode(): (members(state), [] if state.claims else sorted(rules.inside("t", values_of(state, 0, 0.0))))
             for key, state in stored_states(settings).items() if state.events}  # fmt: skip
    return {key: both for key, both in found.items() if both[0] != both[1]}


def assert_segments_are_true(settings: Settings) -> None:
    """What states say is what the rules say, and the last word on the topic; each change has one id. Of who withdraws
    consent, of devices and of who has one the last word may be what a worker said right before it was gone, and read in
    another order afterwards, with what undoes it (docs/privacy.md, "Not there")."""
    wrong = _misplaced(settings)
    assert not wrong, f"{len(wrong)} users; by their states, and by the rules: {[*wrong.items()][:3]}"
    said = [msgspec.json.decode(record.value, type=SegmentChange) for record in read_all(settings, topics.SEGMENT_CHANGES)]
    ids = {(one.user_id, one.segment, one.number, one.profile_since): one.change_id for one in said}
    assert len({*ids.values()}) == len({one.change_id for one in said}) == len(ids)
    undone = {*(f"u{n}" for n in range(2 * DEVICES)), *(f"d{n}" for n in range(DEVICES)),
              *(f"shy{n}" for n in range(EACH_ODD))}  # fmt: skip
    last = {(one.user_id, one.segment): one.change for one in said if one.user_id not in undone}
    held = {(user, name) for key, state in stored_states(settings).items()
            if (user := key.decode().removeprefix("t/")) not in undone for name in members(state)}  # fmt: skip
    assert held == {which for which, change in last.items() if change == "entered"}


def _unanswered(records: list[Any], owed: dict[str, set[str]]) -> list[tuple[str, str, set[str]]]:
    last = {(record.key or b"").decode(): record.value for record in records}
    as_of = {key: msgspec.json.decode(value, type=Recommendation).as_of_event_id for key, value in last.items()}
    return [(key, as_of.get(key, ""), some) for key, some in owed.items() if as_of.get(key) not in some]


def events(settings: Settings) -> list[Event]:
    """Those of the log that were not rejected, each partition's in order."""
    some = [(record, msgspec.json.decode(record.value, type=Event)) for record in read_all(settings, topics.EVENTS)
            if record.value != NO_EVENT]  # fmt: skip
    return [one for record, one in some if one.ts_ms <= record.timestamp + settings.personalize.skew_max_ms]


def orders_due_again() -> list[dict[str, Any]]:
    """Of "tea", by some of the users, so long ago that the bundles of `REPURCHASE` call them due when the stream begins."""
    ago_ms = round((REPURCHASE.usual_days - 6) * DAY_MS)
    return [event(user=f"u{n}", ts_ms=time.time_ns() // 1_000_000 - ago_ms, lane="live", item="tea", id=f"tea{n}",
                  name="Order Completed") for n in range(USERS // 4)]  # fmt: skip


def assert_each_is_reminded_once(settings: Settings) -> None:
    """Of every such order, under the id that it gives, however often it was sent."""
    wanted = {output_id("reminder", "t", one.user, "tea", "", str(one.ts_ms))
              for one in events(settings) if one.message_id.startswith("tea")}  # fmt: skip
    said = [msgspec.json.decode(record.value, type=Reminder) for record in read_all(settings, topics.REMINDERS)]
    assert wanted and {one.reminder_id for one in said} == wanted
    assert {(one.item_id, one.state) for one in said} == {("tea", "due")}


def soon_silent(spread_s: float) -> list[dict[str, Any]]:
    """Of users who do nothing else, so that the bundles' churn model calls each of them gone one after the other within
    `spread_s` from now: timers that are running while workers come, go and die."""
    now_ms = time.time_ns() // 1_000_000 - round(LAPSE_DAYS * DAY_MS)
    return [event(user=f"quiet{n}", ts_ms=now_ms + round(spread_s * 1_000 * n / QUIET), lane="live", id=f"quiet{n}")
            for n in range(QUIET)]  # fmt: skip


def alerts(records: list[Any]) -> list[ChurnAlert]:
    """Those of a topic, as often as they were sent."""
    return [msgspec.json.decode(record.value, type=ChurnAlert) for record in records]


def await_alerts(settings: Settings, timeout_s: float, count: int = QUIET) -> None:
    """Until so many of them were alerted about."""
    with Tail(settings, topics.CHURN_ALERTS) as said:
        until(lambda: len({one.user_id for one in alerts(said.poll()) if one.user_id.startswith("quiet")}) >= count,
              timeout_s, f"{count} of those who have fallen silent alerted about")  # fmt: skip


def assert_each_is_alerted_once(settings: Settings) -> None:
    """Of every such user one alert, under the id that its last event gives, however often it was sent; and none of anybody
    who was there all the time. Whose clock is behind looks silent; who ordered "tea" was, until the stream began: where they
    were alerted about, that is cleared once they came back, and not before."""
    def ident(user: str, event_id: str, state: str) -> str:
        return output_id("churn-alert", "t", user, event_id, state)

    wanted = {ident(f"quiet{n}", f"quiet{n}", "raised") for n in range(QUIET)}
    ordered = {ident(f"u{n}", f"tea{n}", state) for n in range(USERS) for state in ("raised", "cleared")}
    said = {one.alert_id for one in alerts(read_all(settings, topics.CHURN_ALERTS))
            if not one.user_id.startswith(("behind", "late"))}  # fmt: skip
    assert wanted <= said <= wanted | ordered
    users = recount(settings).users
    for user, tea in ((f"u{n}", f"tea{n}") for n in range(USERS)):
        came_back = f"t/{user}" in users and users[f"t/{user}"].newest != tea
        assert (ident(user, tea, "cleared") in said) == (ident(user, tea, "raised") in said and came_back), user


def assert_aggregates_are_true(settings: Settings) -> None:
    """ClickHouse has each event once, and its views give what counting the log by hand gives: an event that is stored twice
    would be in them."""
    true, names = recount(settings), ("Product Viewed", "Product Added", "Order Completed")
    with closing(clickhouse.open_client(settings.clickhouse)) as client:

        def counts(view: str, *key: str, columns: str) -> dict[tuple[str, ...], int]:
            """(*key, event) → what a view says, where it says more than none."""
            rows = client.query(f"SELECT {', '.join(key)}, {columns} FROM {view}").result_rows  # noqa: S608  # of this file
            return {(*row[: len(key)], name): count for row in rows
                    for name, count in zip(names, row[len(key) :], strict=True) if count}  # fmt: skip

        assert {*client.query("SELECT tenant, message_id FROM events").result_rows} == true.stored
        assert counts("items_by_hour", "tenant", "substring(toString(hour), 1, 13)", "product_id",
                      columns="views, carts, orders") == true.hours  # fmt: skip
        assert counts("funnel_daily", "tenant", "toString(day)", columns="viewing, adding, ordering") == {
            key: len(users) for key, users in true.days.items()}  # fmt: skip
        assert counts("sessions GROUP BY tenant, user", "concat(tenant, '/', user)",
                      columns="sum(views), sum(carts), sum(orders)") == true.done  # fmt: skip


def assert_little_was_sent_again(settings: Settings, deaths_ms: list[int]) -> None:
    """What was said twice, about a user who had done nothing new, was first said right before a death of the worker, which
    lies between the two: within one interval and the batch that was under way. `deaths_ms`: when workers died."""
    own = settings.personalize
    by_user: dict[str, list[Event]] = {}
    for one in events(settings):
        by_user.setdefault(one.user, []).append(one)
    deaths, ages_ms = sorted(one + ON_ITS_WAY_MS_MAX for one in deaths_ms), []
    for topic, ident in ((topics.RECOMMENDATIONS, "recommendation_id"), (topics.COMPLEMENTS, "recommendation_id"),
                         (topics.REMINDERS, "reminder_id"), (topics.CHURN_ALERTS, "alert_id"),
                         (topics.SEGMENT_CHANGES, "change_id")):  # fmt: skip
        said_ms: dict[tuple[str, str], int] = {}
        for record in read_all(settings, topic):
            output = msgspec.json.decode(record.value)
            known, now_ms = (output[ident], output.get("state", "")), int(record.timestamp)
            before_ms, said_ms[known] = said_ms.get(known), now_ms
            if before_ms is None or _answered_anew(by_user[output["user_id"]], output.get("as_of_event_id")):
                continue
            at = bisect_left(deaths, before_ms)
            assert at < len(deaths) and deaths[at] <= now_ms, f"said twice, and nobody died in between: {output}"
            ages_ms.append(deaths[at] - before_ms)
    oldest_ms = max(ages_ms, default=0)
    print(f"{len(ages_ms)} outputs sent again after {len(deaths)} deaths, first said {oldest_ms} ms before one at most")
    interval_ms = own.flush_interval_behind_ms + own.flush_interval_ms
    assert oldest_ms <= interval_ms + UNDER_WAY_MS_MAX + ON_ITS_WAY_MS_MAX, f"said {oldest_ms} ms before a death"


def _answered_anew(log: list[Event], event_id: str | None) -> bool:
    """Whether a user's event was still their newest when a late one was folded: then the same is said again, of another
    state."""
    seen: set[str] = set()
    newest: tuple[int, str] | None = None
    for one in log:
        if one.message_id in seen:
            continue
        seen.add(one.message_id)
        if one.message_id == event_id:
            newest = one.ts_ms, event_id
        elif newest is not None:
            return (one.ts_ms, one.message_id) < newest
    return False


def emissions(settings: Settings) -> Counter[str]:
    """How often each recommendation was sent; each must answer an event of the log, of its user."""
    of = {one.message_id: one.user for one in events(settings)}
    found: Counter[str] = Counter()
    for record in read_all(settings, topics.RECOMMENDATIONS):
        one = msgspec.json.decode(record.value, type=Recommendation)
        assert of[one.as_of_event_id] == one.user_id
        found[one.recommendation_id] += 1
    return found


class Feed:
    """Sends events at a rate, on a thread of its own, until it is stopped."""

    def __init__(self, settings: Settings, seed: int, events_per_s: float) -> None:
        self.sent = 0
        self.failure: Exception | None = None
        self._settings, self._stream, self._pause_s = settings, Stream(seed), PORTION / events_per_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed")

    def _run(self) -> None:
        try:
            with Sender(self._settings) as sender:
                while not self._over.wait(self._pause_s):
                    self.sent += sender.send(self._stream.take(PORTION))
        except Exception as error:  # the test's own thread says it
            self.failure = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        assert self.failure is None, self.failure


class Committed:
    """How far a group has come, in records of the events topic over all partitions; one connection, to be closed."""

    def __init__(self, settings: Settings, group: str) -> None:
        self._lag, self._group = Lag(settings), group

    def __call__(self) -> int:
        ends = self._lag.ends(topics.EVENTS)
        return sum(ends.values()) - self._lag.of(self._group, ends)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lag.admin.close()


def ended_by_kill(process: subprocess.Popen[bytes], timeout_s: float, where: str) -> int:
    """It must have come to its end there, not have ended otherwise. Returns when, ms since 1970."""
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired as error:
        process.kill()
        raise AssertionError(f"the worker never came to {where}") from error
    assert code == -9, f"ended with {code} before {where}"
    return time.time_ns() // 1_000_000


