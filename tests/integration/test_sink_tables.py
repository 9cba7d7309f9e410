"""Migrations, tables and views on a real ClickHouse engine: hand-computed examples, and the same again after a replay."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from math import log, sqrt
from typing import Any, get_args

import msgspec
import numpy as np
import pytest

from clickwake import campaigns, segments
from schemas import topics
from stream.adapters.database import clickhouse as adapter
from stream.core.user.featurize import ALERT_FEATURES
from stream.settings import Kept, Settings
from stream.sink.tables import TABLES
from tests.golden.samples import FORMS
from tests.support.database import APPENDED_MS, Database, on
from training.promotions import trials


def sample(form: str) -> dict[str, Any]:
    """As of what else is written, for topics whose views have tests of their own."""
    found: dict[str, Any] = msgspec.to_builtins(FORMS[f"{form}.json"].sample)
    return found


def event(ident: str, time: str, user: str, name: str, product: str | None = None, **more: Any) -> dict[str, Any]:
    properties = {"product_id": product} if product else {}
    return {"messageId": ident, "type": "track", "event": name, "userId": user, "tenant": "shop",
            "timestamp": f"2026-01-{time}:00Z", "properties": {**properties, **more.pop("properties", {})}, **more}


VIEW, ADD, CHECKOUT, ORDER, REFUND = (
    "Product Viewed", "Product Added", "Checkout Started", "Order Completed", "Order Refunded")
IN_S1 = {"context": {"sessionId": "s1"}}
EVENTS = [
    event("m1", "05T10:00", "u1", VIEW, "A"),
    event("m2", "05T10:05", "u1", ADD, "A"),
    event("m3", "05T10:06", "u1", CHECKOUT),
    event("m4", "05T10:07", "u1", ORDER, properties={"order_id": "o1", "products": [
        {"product_id": "A", "price": 5, "quantity": 2}, {"product_id": "B", "price": 3}]}),
    event("m5", "13T10:00", "u1", VIEW, "B"),
    event("m6", "13T10:31", "u1", VIEW, "B"),
    event("m7", "05T10:30", "u2", VIEW, "A", **IN_S1),
    event("m8", "05T10:59", "u2", ORDER, **IN_S1,
          properties={"order_id": "o2", "products": [{"product_id": "A", "price": 5}]}),
    event("m9", "06T09:00", "u3", ADD, "B"),
    event("m10", "06T09:01", "u3", VIEW, "B"),
    event("m11", "13T11:00", "u1", REFUND, properties={"order_id": "o1", "products": [{"product_id": "A", "price": 5}]}),
    event("m12", "05T10:20", "u9", VIEW, "A", context={"consent": {"analytics": False}}),
]


def recommendation(ident: str, user: str, time: str, *items: str) -> dict[str, Any]:
    return {"recommendation_id": ident, "tenant": "shop", "user_id": user, "as_of_event_id": "m", "model_version": "v1",
            "as_of_ts": f"2026-01-{time}:00Z",
            "items": [{"item_id": item, "score": 1.0, "source": "rules", "reasons": []} for item in items]}


RECOMMENDATIONS = [
    recommendation("r1", "u1", "05T10:01", "B", "A", "C"),  # A and B are ordered at 10:07; B is viewed again 8 days later
    recommendation("r2", "u3", "06T09:01", "B"),  # the view at this very time led to it and does not count
    recommendation("r3", "u1", "13T10:30", "B"),  # viewed a minute later, but no horizon has passed
    recommendation("r1", "u1", "05T10:01", "X"),  # emitted again by a replay under another model: not what was served
]


def alert(ident: str, user: str, time: str, horizon_days: int, state: str = "raised") -> dict[str, Any]:
    at = f"2026-01-{time}:00Z"
    return {"alert_id": ident, "tenant": "shop", "user_id": user, "state": state, "probability": 0.75,
            "horizon_days": horizon_days, "interval": [0.5, 0.9], "reasons": ["silent"], "last_event_ts": at, "as_of_ts": at,
            "model_version": "v1"}


ALERTS = [
    alert("a1", "u2", "06T00:00", 5),  # never came back
    alert("a2", "u1", "12T00:00", 1),  # came back on the 13th at 10:00, later than a day
    alert("a3", "u1", "12T10:30", 1),  # came back within the day
    alert("a4", "u3", "12T00:00", 14),  # too early to tell
    alert("a5", "u1", "13T10:00", 1, state="cleared"),
]


def letter(ident: str, kind: str, source: str, payload: bytes) -> dict[str, Any]:
    at = "2026-01-05T00:00:00Z"
    return {"dead_letter_id": ident, "tenant": "shop", "kind": kind, "payload": payload, "payload_bytes": len(payload),
            "failure": {"timestamp": at, "messages": [{"path": "p", "keyword": "k", "message": "no"}]}, "first_seen": at,
            "source": {"topic": source, "partition": 0, "offset": 1}}


LETTERS = [
    letter("d1", "dropped", "online-retail", b"a,b"),
    letter("d2", "dropped", "online-retail", b"a,c"),
    letter("d3", "unprocessable", "clickwake.events.v1", b'{"messageId": "online-retail:9", "lane": "import"}'),
    letter("d4", "undecodable", "clickwake.events.v1", b"{"),
]
def decision(ident: str, user: str, arm: str) -> dict[str, Any]:
    return recommendation(ident, user, "05T10:00", "A", "B") | {
        "scenario": "for_you", "candidates": 2, "served_at": "2026-01-05T10:00:00Z", "experiment": "e", "arm": arm}


def change(user: str, number: int, time: str) -> dict[str, Any]:
    return {"change_id": f"{user}-{number}", "tenant": "shop", "user_id": user, "segment": "lookers",
            "change": "entered" if number % 2 else "left", "number": number, "values": {"views_7d": float(number)},
            "as_of_event_id": "m", "as_of_ts": f"2026-01-{time}:00Z", "rules_version": "r", "model_version": "v1"}


def delivery(ident: str, user: str, time: str, status: str) -> dict[str, Any]:
    return {"delivery_id": ident, "tenant": "shop", "user_id": user, "delivery": "save", "channel": "crm",
            "about_kind": "churn-alert", "about_id": "a1", "status": status, "at": f"2026-01-{time}:00Z"}


def reminder(
    ident: str, user: str, item: str, day: int, state: str = "due", category: str = "", until: int = 0
) -> dict[str, Any]:
    """Due from that day of January on, for ten days."""
    return {"reminder_id": ident, "tenant": "shop", "user_id": user, "state": state, "item_id": item, "category": category,
            "last_bought_ts": "2025-12-01T00:00:00Z", "interval_days": 30.0, "window_from": f"2026-01-{day:02}T00:00:00Z",
            "window_to": f"2026-01-{day + 10:02}T00:00:00Z", "probability": 0.5, "reasons": ["r"],
            "as_of_ts": f"2026-01-{until or day:02}T00:00:00Z", "model_version": "v1"}


def beside(ident: str, user: str, time: str, basket: list[str], *items: str) -> dict[str, Any]:
    return recommendation(ident, user, time, *items) | {"basket": basket}


COMPLEMENTS = [
    beside("k1", "u1", "05T10:05", ["A"], "B", "C"),  # B is ordered at 10:07
    beside("k2", "u3", "06T09:00", ["B"], "A"),  # nothing of it is taken
    beside("k3", "u1", "12T11:01", ["B"], "A"),  # a day is not over
    beside("k4", "u3", "05T12:00", ["A"], "C", "B"),  # B is added on the 6th at 9:00
    beside("k5", "u3", "05T08:59", ["A"], "B"),  # ... which is a minute after this one's day
    beside("k1", "u1", "05T10:05", ["A"], "A"),  # said again by a replay
]
DECISIONS = [decision("x1", "u1", "a"), decision("x2", "u2", "a"), decision("x3", "u3", "b"), decision("x4", "u4", "b"),
             decision("x1", "u1", "b")]  # by another replica: not what was served first
CHANGES = [change("u1", 1, "05T10:00"), change("u1", 2, "06T10:00"), change("u1", 3, "07T10:00"),
           change("u2", 1, "05T12:00"), change("u1", 2, "06T11:00")]  # the last one was said again after a crash
PAYS = {"propensity": 0.9, "expected": {"value": 10.0, "cost": 1.0, "uplift": 0.5, "gain": 4.0, "model_version": "m1"}}
DELIVERIES = [delivery("y1", "u1", "05T00:00", "deferred"), delivery("y1", "u1", "05T08:00", "sent") | PAYS,
              delivery("y2", "u2", "05T08:00", "held_out") | PAYS, delivery("y3", "u3", "07T00:00", "capped")]  # fmt: skip
STAFF = delivery("y4", "", "05T08:00", "sent") | {"about_kind": "satisfaction-alert", "thing": "brand/Clay"}
REMINDERS = [reminder("n1", "r1", "tea", 5), reminder("n1", "r1", "tea", 5, "bought", until=10),
             reminder("n2", "r2", "tea", 6), reminder("n2", "r2", "tea", 7),  # the second is a replay's
             reminder("n3", "r1", "", 6, category="drinks"), reminder("n4", "r2", "cup", 20)]  # fmt: skip
ITEMS = [{"item_id": "A", "tenant": "shop", "title": "old"}, {"item_id": "A", "tenant": "shop", "title": "new"}]
IMPORTED = [event(f"online-retail:{n}", "01T00:00", "u1", "Imported", lane="import", tenant="other") for n in (1, 2)]
ALL = [*on(topics.EVENTS, EVENTS), *on(topics.RECOMMENDATIONS, RECOMMENDATIONS), *on(topics.CHURN_ALERTS, ALERTS),
       *on(topics.DEAD_LETTERS, LETTERS), *on(topics.ITEMS, ITEMS), *on(topics.DECISIONS, DECISIONS),
       *on(topics.SEGMENT_CHANGES, CHANGES), *on(topics.DELIVERIES, [*DELIVERIES, STAFF]), *on(topics.REMINDERS, REMINDERS),
       *on(topics.DECISIONS, [sample("offer-decision")], len(DECISIONS)), *on(topics.OPINIONS, [sample("opinion")]),
       *on(topics.SATISFACTION_ALERTS, [sample("satisfaction-alert")]), *on(topics.COMPLEMENTS, COMPLEMENTS)]
SEEN, CLICK = "Product List Viewed", "Product Clicked"
REACTIONS = [
    event(f"{ident}-{name}", f"05T10:0{minute}", user, name, properties={"recommendation_id": ident})
    for ident, user, acts in (("x1", "u1", (SEEN, CLICK, ORDER)), ("x2", "u2", (CLICK,)), ("x3", "u3", (SEEN,)),
                              ("x4", "u4", (SEEN, CLICK)))
    for minute, name in enumerate(acts)
]  # fmt: skip


def at(day: int, hour: int, minute: int = 0) -> datetime:
    return datetime(2026, 1, day, hour, minute, tzinfo=UTC)


def test_migrations_apply_once_and_an_edited_one_is_refused(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    assert adapter.migrate(database.settings) == []
    names = [row[0] for row in database.rows("SELECT name FROM schema_migrations ORDER BY version")]
    assert names == [migration.name for migration in adapter.migrations()]
    edited = [msgspec.structs.replace(migration, sha256="0" * 64) for migration in adapter.migrations()]
    monkeypatch.setattr(adapter, "migrations", lambda: edited)
    with pytest.raises(adapter.MigrationError, match=r"0001_events\.sql has sha256 0000.*in a new file"):
        adapter.migrate(database.settings)


def test_a_migration_may_run_twice(database: Database) -> None:
    """What a crash between its last statement and its record leads to."""
    database.store(on(topics.EVENTS, EVENTS))
    database.client.command("TRUNCATE TABLE schema_migrations")
    assert adapter.migrate(database.settings) == [migration.name for migration in adapter.migrations()]
    assert database.counts()["events"] == len(EVENTS)


def test_the_sink_writes_the_columns_the_migrations_create(database: Database) -> None:
    sql = ("SELECT table, name, comment, default_kind FROM system.columns WHERE database = {d:String} "
           "ORDER BY table, position")  # fmt: skip
    found = database.client.query(sql, parameters={"d": database.settings.database}).result_rows
    for table in TABLES:
        assert [name for t, name, _, default in found if t == table.name and not default] == list(table.columns)
    # columns of views of what was served are those of the tables below them
    assert [(t, name) for t, name, comment, _ in found if not comment and not t.endswith("_served")] == []


def test_what_came_of_answers_and_of_arms(database: Database) -> None:
    database.store([*on(topics.DECISIONS, DECISIONS), *on(topics.EVENTS, REACTIONS)])
    assert database.rows("SELECT recommendation_id, arm, isNotNull(shown_at), isNotNull(clicked_at), isNotNull(ordered_at) "
                         "FROM decision_outcomes ORDER BY recommendation_id") == [
        ("x1", "a", 1, 1, 1), ("x2", "a", 0, 1, 0), ("x3", "b", 1, 0, 0), ("x4", "b", 1, 1, 0)]  # fmt: skip
    assert database.rows("SELECT arm, users, clicked, ordered, click_rate FROM experiment_results ORDER BY arm") == [
        ("a", 1, 1, 1, 1.0), ("b", 2, 1, 0, 0.5)], "who never saw an answer is in no arm"
    ends = database.rows("SELECT click_low, click_high, order_low, order_high FROM experiment_results ORDER BY arm")
    assert ends == [(0.0, 1.0, 0.0, 1.0)] * 2, "one user who clicked, and two of whom nobody ordered, are not all users"


@pytest.mark.parametrize("clicked", [0, 40, 400])
def test_an_arm_whose_users_all_did_the_same_is_not_sure_of_itself(database: Database, clicked: int) -> None:
    people = [f"p{n}" for n in range(400)]
    acts = [*((SEEN, user) for user in people), *((CLICK, user) for user in people[:clicked])]
    done = [event(f"{name} {user}", "05T10:00", user, name, properties={"recommendation_id": user}) for name, user in acts]
    database.store([*on(topics.DECISIONS, [decision(user, user, "a") for user in people]), *on(topics.EVENTS, done)])
    ((rate, low, high),) = database.rows("SELECT click_rate, click_low, click_high FROM experiment_results")
    p = (clicked + 1) / 402
    half = sqrt(p * (1 - p) * 2 * (400 * 0.085**2 + 1) / (400**2 * 0.085**2) * log(sqrt(400 * 0.085**2 + 1) / 0.05))
    assert rate == clicked / 400 and half > 0.005
    assert (low, high) == pytest.approx((max(0.0, rate - half), min(1.0, rate + half)))


def test_who_was_in_a_segment_when(database: Database) -> None:
    database.store(on(topics.SEGMENT_CHANGES, CHANGES))
    intervals = "SELECT user_id, entered_at, left_at, values FROM segment_intervals"
    assert database.rows(f"{intervals} ORDER BY user_id, entered_at") == [
        ("u1", at(5, 10), at(6, 10), {"views_7d": 1.0}), ("u1", at(7, 10), None, {"views_7d": 3.0}),
        ("u2", at(5, 12), None, {"views_7d": 1.0})]  # fmt: skip
    for time, users in (("05 11:00:00", ["u1"]), ("06 12:00:00", ["u2"]), ("08 00:00:00", ["u1", "u2"])):
        then = f"entered_at <= '2026-01-{time}' AND (left_at IS NULL OR left_at > '2026-01-{time}')"
        assert [row[0] for row in database.rows(f"{intervals} WHERE {then} ORDER BY user_id")] == users
    assert database.rows("SELECT segment, members, entered_1d, left_1d FROM segment_sizes") == [("lookers", 2, 1, 0)]


def test_segments_are_asked_about_by_tenant_or_for_all(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(_env_file=None, clickhouse=database.settings)  # type: ignore[call-arg]
    monkeypatch.setattr(segments, "load_settings", lambda: settings)
    others = [change(f"v{n}", 1, "08T10:00") | {"tenant": "other"} for n in range(3)]
    database.store(on(topics.SEGMENT_CHANGES, [*CHANGES, *others]))
    for tenant, users, sizes in (("shop", ["u1", "u2"], [2]), ("other", ["v0", "v1", "v2"], [3]), ("", ["v0", "v1"], [3, 2]),
                                 ("nobody", [], [])):  # fmt: skip
        assert segments.members("lookers", tenant, None, 3 if tenant else 2, as_json=True) == 0
        assert [one["user_id"] for one in msgspec.json.decode(capsys.readouterr().out)] == users
        assert segments.sizes(tenant, as_json=True) == 0
        assert [one["members"] for one in msgspec.json.decode(capsys.readouterr().out)] == sizes


def test_who_comes_back_after_a_withdrawal_is_in_a_segment_anew(database: Database) -> None:
    """Each profile counts from 1; the second one's changes lie behind the first one's, whichever come first."""
    first, second = "2026-01-01T00:00:00Z", "2026-01-06T12:00:00Z"
    before = [change("u1", number, time) | {"profile_since": first} for number, time in ((1, "05T10:00"), (2, "06T10:00"))]
    after = [change("u1", number, time) | {"profile_since": second, "change_id": f"again-{number}"}
             for number, time in ((1, "07T10:00"), (2, "08T10:00"), (3, "09T10:00"))]  # fmt: skip
    database.store(on(topics.SEGMENT_CHANGES, [*after, *before]))
    database.store(on(topics.SEGMENT_CHANGES, [change("u2", 1, "05T12:00")], 9))  # said before profiles were told apart
    assert database.rows("SELECT user_id, entered_at, left_at FROM segment_intervals ORDER BY user_id, entered_at") == [
        ("u1", at(5, 10), at(6, 10)), ("u1", at(7, 10), at(8, 10)), ("u1", at(9, 10), None), ("u2", at(5, 12), None)]
    assert database.rows("SELECT members FROM segment_sizes") == [(2,)]


def test_does_telling_help(database: Database) -> None:
    database.store([*on(topics.DELIVERIES, DELIVERIES), *on(topics.EVENTS, EVENTS)])
    asked = "SELECT status, users, returned_7d, ordered_7d, return_rate FROM delivery_outcomes ORDER BY status"
    assert database.rows(asked) == [
        ("held_out", 1, 1, 1, 1.0), ("sent", 1, 1, 1, 1.0)]  # fmt: skip


def gained(ident: str, user: str, status: str, propensity: float, uplift: float, alert: str = "a1") -> dict[str, Any]:
    expected = {"value": 10.0, "cost": 1.0, "uplift": uplift, "gain": 10 * uplift - 1, "model_version": "m1"}
    return delivery(ident, user, "05T09:00", status) | {
        "delivery": "pay", "decided_at": "2026-01-05T08:00:00Z", "propensity": propensity, "expected": expected,
        "about_id": alert}  # fmt: skip


@pytest.mark.parametrize("times", [1, 15])
def test_what_a_campaign_is_worth_and_whether_the_model_knows(database: Database, times: int) -> None:
    """Users whose week is over, ten or so many times. Of four told three come back, of four left out one, of two held out
    one."""
    told = [gained(f"t{n}", f"t{n}", "sent" if n else "failed", 0.8, 0.5) for n in range(4 * times)]
    left = [gained(f"l{n}", f"l{n}", "left_out", 0.2, 0.05) for n in range(4 * times)]
    held = [gained(f"h{n}", f"h{n}", "held_out", *((0.8, 0.5) if n % 2 else (0.2, 0.05))) for n in range(2 * times)]
    again = delivery("again", "t0", "05T10:00", "held_out") | {"delivery": "pay", "decided_at": "2026-01-05T10:00:00Z"}
    users_back = [*(f"t{n}" for n in range(4 * times) if n % 4 < 3), *(f"l{n}" for n in range(0, 4 * times, 4)),
                  *(f"h{n}" for n in range(1, 2 * times, 2))]  # fmt: skip
    back = [event(f"b{user}", "06T10:00", user, VIEW, "A") for user in users_back]
    early = event("early", "05T08:00", "l1", VIEW, "A")  # when the lot was drawn, not after it
    database.store([*on(topics.DELIVERIES, [*told, *left, *held, again]), *on(topics.EVENTS, [*back, early])])
    ((users, n_told, n_held, gained_, costs, foreseen, realised),) = database.rows(
        "SELECT users, told, held_out, returns_gained, costs, expected_gain, realised_gain FROM delivery_campaigns")
    assert (users, n_told, n_held) == (8 * times, 4 * times, 2 * times)
    assert (gained_, costs) == (0.0, 4.0 * times), "half of the users came back, and of the held out"
    assert foreseen == pytest.approx(16.0 * times) and realised == pytest.approx(users * (5 - 0.5 - 5))
    ends = database.rows("SELECT returns_low, returns_high, realised_low, realised_high FROM delivery_campaigns")
    if times == 1:
        assert ends == [(None,) * 4], "of ten users nothing can be said"
        tenths = database.rows("SELECT tenth, users, told, uplift FROM delivery_gains ORDER BY tenth")
        assert [row[0] for row in tenths] == list(range(1, 11)) and sum(row[2] for row in tenths) == 4
        assert {row[3] for row in tenths} == {None}, "one user is on one side"
        return
    half = 1.96 * users * sqrt(0.25 / users + 0.25 / n_held)
    money, others = [9.0, 9.0, 9.0, -1.0, 10.0, 0.0, 0.0, 0.0] * times, [10.0, 0.0] * times
    money_half = 1.96 * users * sqrt(np.var([*money, 9.5, -0.5]) / users + np.var([*others, 10.0, 0.0]) / n_held)
    assert ends == [pytest.approx((-half, half, realised - money_half, realised + money_half))]


def test_held_out_users_of_whom_nobody_came_back_do_not_make_a_campaign_sure_of_itself(database: Database) -> None:
    told = [gained(f"t{n}", f"t{n}", "sent", 0.8, 0.5) for n in range(100)]
    held = [gained(f"h{n}", f"h{n}", "held_out", 0.8, 0.5) for n in range(30)]
    back = [event(f"b{n}", "06T10:00", f"t{n}", VIEW, "A") for n in range(40)]
    database.store([*on(topics.DELIVERIES, [*told, *held[:2]]), *on(topics.EVENTS, back)])
    asked = "SELECT returns_gained, returns_low, returns_high, realised_gain, realised_low FROM delivery_campaigns"
    assert database.rows(asked) == [(40.0, None, None, pytest.approx(300.0), None)]
    database.store(on(topics.DELIVERIES, held[2:], 1_000))
    p, q = 41 / 102, 1 / 32
    half = 1.96 * 100 * sqrt(p * (1 - p) / 100 + q * (1 - q) / 30)
    assert database.rows(asked) == [pytest.approx((40.0, 40 - half, 40 + half, 300.0, 300 - 10 * half))]


def test_campaigns_are_shown_with_their_intervals(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(_env_file=None, clickhouse=database.settings)  # type: ignore[call-arg]
    monkeypatch.setattr(campaigns, "load_settings", lambda: settings)
    assert campaigns.results(as_json=False) == 0 and "no delivery has decided" in capsys.readouterr().out
    database.store(on(topics.DELIVERIES, [gained("t", "u1", "sent", 0.9, 0.5), gained("h", "u2", "held_out", 0.9, 0.25)]))
    assert campaigns.results(as_json=True) == 0
    found = msgspec.json.decode(capsys.readouterr().out)
    assert [one["expected_gain"] for one in found["campaigns"]] == [4.0] and len(found["tenths"]) == 2
    monkeypatch.setenv("COLUMNS", "200")
    assert campaigns.results(as_json=False) == 0
    shown = capsys.readouterr().out
    assert "4.00" in shown and "-1.00" in shown and " to " not in shown, "one message, nobody came back: no interval of that"


@pytest.mark.parametrize("each", [1, 20])
def test_effects_by_tenth_are_weighted_by_the_chances(database: Database, each: int) -> None:
    """In a tenth so many of either chance a side; of the told those of the smaller one return, of the others nobody."""
    people = range(20 * each)
    some = [gained(f"t{n}", f"t{n}", "sent", 0.8 if n % 2 else 0.5, 1.0 - n / 1_000) for n in people]
    rest = [gained(f"h{n}", f"h{n}", "held_out", 0.8 if n % 2 else 0.5, 1.0 - n / 1_000) for n in people]
    back = [event(f"b{n}", "06T10:00", f"t{n}", VIEW, "A") for n in people[::2]]
    database.store([*on(topics.DELIVERIES, [*some, *rest]), *on(topics.EVENTS, back)])
    first = database.rows("SELECT users, told, uplift, uplift_low, uplift_high, realised_gain, realised_low "
                          "FROM delivery_gains WHERE tenth = 1")  # fmt: skip
    rate = (1 / 0.5) / (1 / 0.5 + 1 / 0.8)
    known = (4 * each, 2 * each, pytest.approx(rate))
    if each == 1:
        assert first == [(*known, None, None, pytest.approx(10 * rate - 1), None)], "of two and two nothing can be said"
        return

    def spread(weights: list[float], returned: list[float], rate: float) -> float:
        """Of a weighted rate, with one more who returned and one who did not, of the mean weight."""
        n, w = len(weights), sum(weights)
        p = (n * rate + 1) / (n + 2)
        of_two = (w / n) ** 2 * ((1 - p) ** 2 + p**2)
        return (sum(one**2 * (y - p) ** 2 for one, y in zip(weights, returned, strict=True)) + of_two) / w**2

    told = spread([1 / 0.5, 1 / 0.8] * each, [1.0, 0.0] * each, rate)
    half = 1.96 * sqrt(told + spread([1 / 0.5, 1 / 0.2] * each, [0.0, 0.0] * each, 0.0))
    assert first == [(*known, *(pytest.approx(rate + one) for one in (-half, half)), pytest.approx(10 * rate - 1),
                      pytest.approx(10 * (rate - half) - 1))]  # fmt: skip


def test_trials_are_what_training_learns_from(database: Database) -> None:
    alerts = [alert(f"a{n}", "u1", f"0{n + 1}T00:00", 14) | {"features": [float(n)] * len(ALERT_FEATURES)}
              for n in range(2)]
    told = [gained("g", "u1", "sent", 0.8, 0.5, "a0"), gained("h", "u2", "held_out", 0.8, 0.5, "a1"),
            gained("x", "u3", "sent", 0.8, 0.5, "unknown")]  # fmt: skip
    database.store([*on(topics.DELIVERIES, told), *on(topics.CHURN_ALERTS, alerts),
                    *on(topics.EVENTS, [event("b", "06T10:00", "u1", VIEW, "A")])])  # fmt: skip
    settings = Settings(_env_file=None, clickhouse=database.settings)  # type: ignore[call-arg]
    found = trials.read(settings, "shop")
    assert list(found) == ["pay"] and found["pay"].told.tolist() == [True, False]
    assert found["pay"].returned.tolist() == [1, 0] and found["pay"].propensity.tolist() == [0.8, 0.8]
    assert found["pay"].features[:, 0].tolist() == [0.0, 1.0] and found["pay"].risk.tolist() == [0.75, 0.75]
    assert trials.read(settings, "nobody") == {}


def test_were_reminders_bought_in_time_and_would_the_average_interval_have_done_as_well(database: Database) -> None:
    """Orders of tea: r1 on days 1, 10 and 28, r2 on day 1; of cola, of the same category: r3 on days 2 and 8. The average
    interval of drinks is (9 + 18 + 6) / 3 = 11 days, windows are 10 days long: due from 6 days after each order on."""
    bought = [("r1", "tea", 1), ("r1", "tea", 10), ("r1", "tea", 28), ("r2", "tea", 1), ("r3", "cola", 2), ("r3", "cola", 8)]
    orders = [event(f"o{user}{item}{day}", f"{day:02}T12:00", user, ORDER, item) for user, item, day in bought]
    catalog = [{"item_id": item, "tenant": "shop", "title": item, "category": "drinks"} for item in ("tea", "cola")]
    database.store([*on(topics.EVENTS, orders), *on(topics.ITEMS, catalog), *on(topics.REMINDERS, REMINDERS)])
    found = database.rows("SELECT reminder_id, window_from, bought_at, outcome FROM reminder_outcomes ORDER BY reminder_id")
    assert found == [
        ("n1", at(5, 0), at(10, 12), "bought"), ("n2", at(6, 0), None, "lapsed"),  # as it was said first
        ("n3", at(6, 0), at(10, 12), "bought"), ("n4", at(20, 0), None, "pending")]  # fmt: skip
    found = database.rows("SELECT user_id, item_id, category, interval_days, window_from, outcome FROM interval_due "
                          "ORDER BY user_id, window_from")  # fmt: skip
    assert found == [
        ("r1", "tea", "drinks", 11.0, at(7, 12), "bought"),  # on the 10th
        ("r1", "tea", "drinks", 11.0, at(16, 12), "lapsed"),  # bought again on the 28th, two days after the window
        ("r2", "tea", "drinks", 11.0, at(7, 12), "lapsed"),
        ("r3", "cola", "drinks", 11.0, at(14, 12), "lapsed"),  # the one from the 2nd was bought before its window began
    ]
    found = database.rows("SELECT method, model_version, said, judged, bought, precision, probability, pending "
                          "FROM reminder_precision ORDER BY method")  # fmt: skip
    assert found == [("average interval", "", 4, 4, 1, 0.25, None, 0), ("reminders", "v1", 4, 3, 2, 2 / 3, 0.5, 1)]


def test_was_what_goes_with_a_basket_taken_within_a_day(database: Database) -> None:
    database.store([*on(topics.COMPLEMENTS, COMPLEMENTS), *on(topics.EVENTS, EVENTS)])
    found = database.rows("SELECT recommendation_id, basket, added_at, ordered_at, taken, outcome FROM complement_outcomes "
                          "ORDER BY recommendation_id")  # fmt: skip
    assert found == [
        ("k1", ["A"], None, at(5, 10, 7), ["B"], "taken"), ("k2", ["B"], None, None, [], "left"),
        ("k3", ["B"], None, None, [], "pending"), ("k4", ["A"], at(6, 9), None, ["B"], "taken"),
        ("k5", ["A"], None, None, [], "left")]  # fmt: skip


def test_two_hundred_months_in_one_batch(database: Database) -> None:
    old = [event(f"m{n}", "01T00:00", "u", VIEW, "A") | {"timestamp": f"{2004 + n // 12}-{n % 12 + 1:02}-01T00:00:00Z"}
           for n in range(200)]
    database.store(on(topics.EVENTS, old))
    assert database.counts()["events"] == database.counts()["event_products"] == 200


def test_a_replay_changes_nothing(database: Database) -> None:
    """The same batch again (its token is known), then the same records in other batches (their tokens are not)."""
    database.store(ALL)
    counts, content = database.counts(), database.everything()
    assert counts == {"events": 12, "event_products": 12, "items": 1, "recommendations": 4, "complements": 6,
                      "decisions": 5, "segment_changes": 5, "churn_alerts": 5, "reminders": 6, "deliveries": 4,
                      "offer_decisions": 1, "opinions": 1, "satisfaction_alerts": 1, "dead_letters": 4}
    # nobody has seen an answer or an offer yet, or bought anything twice; predictions are stored by a command
    empty = {"experiment_results", "experiment_users", "experiment_metrics", "interval_due", "offer_exposure", "offer_spend",
             "satisfaction_predicted"}  # fmt: skip
    assert {name for name, value in content.items() if not value} == empty
    database.store(ALL)
    assert database.rows("SELECT count() FROM events") == [(12,)], "the server skips an insert it has seen"
    for start in range(0, len(ALL), 7):
        database.store(ALL[start : start + 7])
    assert database.rows("SELECT count() > 12 FROM events") == [(True,)], "this time the rows did arrive again"
    assert database.counts() == counts
    assert database.everything() == content


def test_of_several_events_with_one_id_the_first_is_kept(database: Database) -> None:
    """Also when a later one is stored first, and when a retry's other client time puts it into another month."""
    first = event("m1", "05T10:00", "u1", VIEW, "A")
    again = {**first, "properties": {"product_id": "B"}, "originalTimestamp": "2025-06-01T00:00:00Z"}
    records = on(topics.EVENTS, [first, again])
    for record in reversed(records):
        database.store([record])
    assert database.rows("SELECT product_id, kafka_offset FROM events FINAL") == [("A", 0)]
    assert database.rows("SELECT product_id FROM event_products FINAL") == [("A",)]


def test_the_catalog_is_as_the_last_record_says(database: Database) -> None:
    database.store(on(topics.ITEMS, ITEMS))
    assert database.rows("SELECT item_id, title FROM items FINAL") == [("A", "new")]
    gone = on(topics.ITEMS, ITEMS[:1], first_offset=5)
    gone[0].key, gone[0].value = b"shop/A", None
    database.store(gone)
    database.store(on(topics.ITEMS, ITEMS))
    assert database.rows("SELECT * FROM items FINAL") == []


def test_items_by_hour(database: Database) -> None:
    database.store(on(topics.EVENTS, EVENTS))
    assert database.rows("SELECT * EXCEPT (tenant, clicks) FROM items_by_hour ORDER BY hour, product_id") == [
        (at(5, 10), "A", 3, 1, 2, 3.0, 15.0, 0.0),
        (at(5, 10), "B", 0, 0, 1, 1.0, 3.0, 0.0),
        (at(6, 9), "B", 1, 1, 0, 0.0, 0.0, 0.0),
        (at(13, 10), "B", 2, 0, 0, 0.0, 0.0, 0.0),
        (at(13, 11), "A", 0, 0, 0, 0.0, 0.0, 5.0),
    ]


def test_funnel_daily(database: Database) -> None:
    database.store(on(topics.EVENTS, EVENTS))
    assert database.rows("SELECT * EXCEPT tenant FROM funnel_daily ORDER BY day") == [
        (date(2026, 1, 5), 2, 1, 1, 2, 1, 1, 1, 2, 1.0),
        (date(2026, 1, 6), 1, 1, 0, 0, 0, 0, 0, 0, 0.0),  # added before viewing
        (date(2026, 1, 13), 1, 0, 0, 0, 0, 0, 0, 0, 0.0),
    ]


def test_sessions(database: Database) -> None:
    database.store(on(topics.EVENTS, EVENTS))
    sql = ("SELECT user, origin, started_at, duration_s, events, views, carts, orders, revenue FROM sessions "
           "ORDER BY user, started_at")  # fmt: skip
    assert database.rows(sql) == [
        ("u1", "gap", at(5, 10), 420.0, 4, 1, 1, 1, 13.0),
        ("u1", "gap", at(13, 10), 0.0, 1, 1, 0, 0, 0.0),
        ("u1", "gap", at(13, 10, 31), 1740.0, 2, 1, 0, 0, 0.0),
        ("u2", "client", at(5, 10, 30), 1740.0, 2, 1, 0, 1, 5.0),
        ("u3", "gap", at(6, 9), 60.0, 2, 1, 1, 0, 0.0),
    ]
    assert database.rows("SELECT session_id FROM sessions WHERE user = 'u3'") == [("gap-1767690000000",)]


def test_active_users_and_cohorts(database: Database) -> None:
    database.store(on(topics.EVENTS, EVENTS))
    assert database.rows("SELECT * EXCEPT tenant FROM active_users_daily ORDER BY day") == [
        (date(2026, 1, 5), 2, 2, 0), (date(2026, 1, 6), 1, 1, 0), (date(2026, 1, 13), 1, 0, 1)]
    assert database.rows("SELECT * EXCEPT tenant FROM cohort_retention ORDER BY week_number") == [
        (date(2026, 1, 5), 0, 3, 3, 1.0), (date(2026, 1, 5), 1, 3, 1, pytest.approx(1 / 3))]


def test_recommendation_hits(database: Database) -> None:
    database.store(ALL)
    sql = ("SELECT recommendation_id, item_id, viewed_at, ordered_at, hit_1h, hit_7d, closed_1h, closed_7d "
           "FROM recommendation_hits ORDER BY as_of_ts, position")  # fmt: skip
    assert database.rows(sql) == [
        ("r1", "B", None, at(5, 10, 7), True, True, True, True),
        ("r1", "A", None, at(5, 10, 7), True, True, True, True),
        ("r1", "C", None, None, False, False, True, True),
        ("r2", "B", None, None, False, False, True, True),
        ("r3", "B", at(13, 10, 31), None, True, True, False, False),
    ]
    assert database.rows("SELECT * EXCEPT (tenant, model_version) FROM recommendation_hit_rate ORDER BY horizon") == [
        ("1d", 2, 1, 1, 0.5, 1), ("1h", 2, 1, 1, 0.5, 1), ("7d", 2, 1, 1, 0.5, 1)]


def test_alert_outcomes(database: Database) -> None:
    database.store(ALL)
    assert database.rows("SELECT alert_id, returned_at, outcome FROM alert_outcomes ORDER BY alert_id") == [
        ("a1", None, "correct"), ("a2", at(13, 10), "correct"), ("a3", at(13, 10), "wrong"), ("a4", None, "pending")]
    assert database.rows("SELECT * EXCEPT (tenant, model_version) FROM alert_precision ORDER BY horizon_days") == [
        (1, 2, 2, 1, 0.5, 0.75, 0), (5, 1, 1, 1, 1.0, 0.75, 0), (14, 1, 0, 0, None, None, 1)]


def test_accounting_and_freshness(database: Database) -> None:
    database.store([*ALL, *on(topics.EVENTS, IMPORTED, first_offset=100)])
    assert database.rows("SELECT * FROM accounting ORDER BY tenant, source, lane") == [
        ("other", "online-retail", "import", 2, 0, 0, 0, 0, 0),
        ("shop", "api", "live", 12, 0, 0, 0, 0, 0),
        ("shop", "online-retail", "", 0, 0, 0, 0, 2, 0),
        ("shop", "online-retail", "import", 0, 0, 1, 0, 0, 0),
        ("shop", "unreadable", "", 0, 1, 0, 0, 0, 0),
    ]
    sql = ("SELECT newest_event_at, newest_received_at, newest_broker_time FROM event_freshness "
           "WHERE tenant = 'shop'")  # fmt: skip
    assert database.rows(sql) == [(at(13, 11), None, datetime.fromtimestamp((APPENDED_MS + 11) / 1000, UTC))]


def test_retention_is_what_the_settings_say_and_rows_go(database: Database) -> None:
    """Of each table by its own days: of two rows, a few days to either side, one goes."""
    days = {table: 400 + 20 * number for number, table in enumerate(get_args(Kept))}
    now = datetime.now(UTC)
    for table, of_it in days.items():
        rows = [("older", now - timedelta(days=of_it + 5)), ("newer", now - timedelta(days=of_it - 5))]
        database.client.insert(table, rows, column_names=["tenant", "partition_time"])

    def kept() -> dict[str, tuple[str, ...]]:
        for table in days:
            database.client.command(f"OPTIMIZE TABLE {table} FINAL")
        sql = "SELECT groupArray(tenant) FROM (SELECT tenant FROM {} ORDER BY 1)"
        return {table: tuple(database.rows(sql.format(table))[0][0]) for table in days}

    left = dict.fromkeys(days, ("newer", "older"))
    assert kept() == left
    for bounded in ({"events": days["events"]}, days, days, {}):
        adapter.migrate(database.settings.model_copy(update={"retention_days": bounded}), wait_s=10)
        held = database.rows("SELECT name, toInt32(extract(create_table_query, 'toIntervalDay[(]([0-9]+)[)]')) "
                             "FROM system.tables WHERE database = currentDatabase() AND create_table_query LIKE '% TTL %'")
        assert dict(held) == bounded
        left |= dict.fromkeys(bounded, ("newer",))
        assert kept() == left
