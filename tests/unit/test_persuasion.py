"""Whom a message persuades, with planted truth: four kinds of users, of whom one is worth a message.

Learned from what a deliverer decided by lot, exported, loaded as a worker loads it, and served by the same deliverer to
users nobody has seen. What each of them would have done either way is known, and so what a policy gains, user by user.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest

from schemas.outputs import ChurnAlert, DeliveryRecord, Expected
from stream.adapters.models import model_store
from stream.adapters.models.model_store import BundleRefused
from stream.core.user.featurize import alert_features
from stream.core.user.state import DAY_MS, UserState
from stream.delivery.channels import Message
from stream.delivery.decide import decide, lot
from stream.delivery.deliverer import Deliverer
from stream.delivery.rules import Csv, Delivery, DeliveryFile, Gain
from tests.support import bundles
from tests.support.bundles import Exported
from tests.support.fakes import FakeErasures, FakeRefusals
from training.evaluation.metrics import bootstrap
from training.promotions import persuasion
from training.promotions.persuasion import RESPONSE
from training.promotions.trials import Trials

AT = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
USERS = 2_500
VALUE, COST = 10.0, 0.5
LEARNING = Delivery(name="save them", channel="files", about="churn", holdout=0.5, gain=Gain(value=VALUE, cost=COST))
SERVING = msgspec.structs.replace(LEARNING, holdout=0.1)
# habit, buyer → P(back if told), P(back if not): lost causes, persuadable, sleeping dogs, sure things
TRUTH = {(0, 0): (0.10, 0.10), (0, 1): (0.45, 0.10), (1, 0): (0.35, 0.60), (1, 1): (0.62, 0.60)}


class Town(NamedTuple):
    """Users in silence; habit shows in their active days, buying in their orders, both blurred."""

    alerts: list[ChurnAlert]
    told: np.ndarray  # (N,) back within 7 days if told
    untold: np.ndarray  # (N,) and if not


def town(n: int, seed: int) -> Town:
    rng = np.random.default_rng(seed)
    traits = rng.integers(0, 2, (n, 2))
    alerts = []
    for at, (habit, buyer) in enumerate(traits):
        days = sorted(rng.choice(60, int(rng.integers(3, 9) + 7 * habit), replace=False).tolist())
        orders = int(rng.binomial(len(days), 0.6 if buyer else 0.15))
        last_ms = days[-1] * DAY_MS
        state = UserState(first_ts_ms=days[0] * DAY_MS, last_ts_ms=last_ms, days=days, events=3 * len(days), orders=orders,
                          order_days=days[:orders], revenue=20.0 * orders)  # fmt: skip
        known = alert_features(state, last_ms + int(rng.integers(7, 21)) * DAY_MS)
        alerts.append(ChurnAlert(
            alert_id=f"a{seed}-{at}", tenant="shop", user_id=f"u{seed}-{at}", state="raised", probability=0.8,
            horizon_days=14, interval=(0.7, 0.9), reasons=(), last_event_ts=AT, as_of_ts=AT, model_version="v",
            features=tuple(known.tolist())))  # fmt: skip
    chances = np.array([TRUTH[tuple(one)] for one in traits.tolist()])
    drawn = rng.random(n)  # one number a user: who comes back at 0.4 would at 0.5
    return Town(alerts, drawn < chances[:, 0], drawn < chances[:, 1])


async def delivered(delivery: Delivery, alerts: list[ChurnAlert]) -> list[DeliveryRecord]:
    logged: list[DeliveryRecord] = []

    async def write(records: list[DeliveryRecord]) -> None:
        logged.extend(records)

    async def send(channel: object, message: Message) -> None:
        assert "features" not in message.details and "effects" not in message.details

    file = DeliveryFile(channels={"files": Csv(folder="unused")}, deliveries=(delivery,))
    await Deliverer(file, FakeErasures(), FakeRefusals(), write, lambda: AT, send).take(alerts)
    return logged


def learned_from(some: Town, records: list[DeliveryRecord]) -> Trials:
    told = np.array([one.status == "sent" for one in records])
    return Trials(np.array([one.features for one in some.alerts], dtype=np.float32), told,
                  np.where(told, some.told, some.untold).astype(np.float64),
                  np.array([one.propensity for one in records]), np.full(len(told), 0.8))  # fmt: skip


async def test_messages_go_to_the_persuadable(tmp_path: Path, exported: Exported) -> None:
    before = town(USERS, seed=1)
    records = await delivered(LEARNING, before.alerts)
    assert {one.status for one in records} == {"sent", "held_out"} and {one.propensity for one in records} == {0.5}
    assert "goes to everybody" in next(one.reason for one in records if one.status == "sent")
    heard: list[str] = []
    learned = persuasion.learn({"save them": learned_from(before, records)}, 7, heard.append)
    judged = learned.judged["save them"]
    assert judged.ships and judged.ahead[RESPONSE].low > 0 and judged.over_all.low > 0 and "it is known" in heard[0]

    made = exported._replace(files=exported.files | learned.files())
    manifest = bundles.publish(str(tmp_path), made, uplift=learned.figures())
    bundle = model_store.load(str(tmp_path), bundles.announcement(str(tmp_path), manifest))
    after = town(USERS, seed=2)
    effects = bundle.effects(np.array([one.features for one in after.alerts], dtype=np.float32))["save them"]
    alerts = [msgspec.structs.replace(one, effects={"save them": (float(both[0]), float(both[1]))})
              for one, both in zip(after.alerts, effects, strict=True)]  # fmt: skip
    served = await delivered(SERVING, alerts)
    assert {one.status for one in served} == {"sent", "held_out", "left_out"}

    own = np.where(after.told, VALUE, 0.0) - COST - np.where(after.untold, VALUE, 0.0)  # (N,) gain of telling each user
    lots = np.array([lot(SERVING, f"shop/{one.user_id}") for one in alerts])
    sent = np.array([one.status == "sent" for one in served])
    all_told = lots >= SERVING.holdout
    by_lot = np.random.default_rng(0).permutation(sent)
    for other in (all_told, by_lot, np.zeros(len(sent), dtype=np.bool_)):
        assert bootstrap(own * sent - own * other).low > 0, "more than telling everybody, as many by lot, or nobody"
    foreseen = np.array([one.expected.gain for one in served if one.expected is not None])
    assert len(foreseen) == len(served) and abs(foreseen[sent].mean() - own[sent].mean()) < 0.5
    held = np.array([one.status == "held_out" for one in served])
    assert abs(held.mean() - 0.1) < 0.02 and (foreseen[held] < 0).any() and (foreseen[held] > 0).any(), "whoever they are"
    below = foreseen <= 0
    assert {one.propensity for one, low in zip(served, below, strict=True) if low} == {0.1}
    assert 0.06 < sent[below].mean() < 0.14, "a few of the others are told, to learn of them"

    again = persuasion.learn({"save them": learned_from(after, served)}, 7, heard.append)
    assert again.judged["save them"].ships, "what was chosen by a model can be learned from, by its chances"


async def test_what_no_better_than_a_lottery_is_not_released() -> None:
    some = town(1_500, seed=3)
    alike = some._replace(told=some.untold)  # the message does nothing to anybody
    heard: list[str] = []
    trials = learned_from(alike, await delivered(LEARNING, some.alerts))
    found = persuasion.learn({"save them": trials}, 7, heard.append)
    assert found.files() == {} and found.figures() == {} and not found.judged["save them"].ships
    assert found.metrics()["uplift_save_them_qini_low"] <= 0 and "no better than a lottery" in heard[0]


def test_too_few_are_said_to_be_too_few() -> None:
    few = Trials(np.zeros((700, 15), np.float32), np.arange(700) < 400, np.zeros(700), np.full(700, 0.5), np.ones(700))
    assert "of 400 told, 0 came back; 20 who did" in (persuasion.too_few(few) or "")
    heard: list[str] = []
    assert persuasion.learn({"save": few._replace(told=np.arange(700) < 500)}, 7, heard.append) == persuasion.Persuasion(
        {}, {}, {"save": (500, 200)})  # fmt: skip
    mostly = few._replace(told=np.arange(700) < 500, returned=np.arange(700) % 2.0)
    assert persuasion.too_few(mostly) == "not enough yet to learn whom it persuades: 200 were not told so far, of 300"


def test_a_bundle_whose_graph_knows_of_other_deliveries_is_refused(tmp_path: Path, exported: Exported) -> None:
    rng = np.random.default_rng(0)
    told = np.arange(200) % 2 == 0
    model = persuasion.uplift.fit(rng.normal(size=(200, 15)), told, (rng.random(200) < 0.5).astype(np.float64))
    files = exported.files | {"uplift.onnx": persuasion.checked({"a": model})}
    with pytest.raises(ValueError, match="zip"):
        bundles.publish(str(tmp_path), exported._replace(files=files), uplift={"a": {}, "b": {}})
    manifest = bundles.publish(str(tmp_path), exported._replace(files=files), uplift={"a": {}})
    path = tmp_path / "bundles" / manifest.model_version / "uplift.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleRefused, match=r"uplift\.onnx is damaged"):
        model_store.load(str(tmp_path), bundles.announcement(str(tmp_path), manifest))


def test_the_value_may_be_a_share_of_the_users_own_order() -> None:
    (one,) = town(1, seed=5).alerts
    sharing = msgspec.structs.replace(LEARNING, holdout=0.01, gain=Gain(value=7.0, order_share=0.5, cost=1.0, explore=0.0))
    with_model = msgspec.structs.replace(one, effects={"save them": (0.6, 0.5)})
    assert with_model.features[4] > 0, "has ordered"
    worth = 10.0
    verdict = decide(sharing, with_model, AT, {}, suppressed=False)
    assert verdict.expected is not None and verdict.expected.uplift is not None
    assert verdict.expected == Expected(value=worth, cost=1.0, uplift=0.6 - 0.5, gain=(0.6 - 0.5) * worth - 1,
                                        model_version="v")  # fmt: skip
    never = msgspec.structs.replace(with_model, features=(0.0,) * 15)
    assert (decide(sharing, never, AT, {}, suppressed=False).expected or Expected(value=0, cost=0)).value == 7.0
    last = {("save them", f"shop/{one.user_id}"): AT - timedelta(days=1)}
    assert decide(sharing, with_model, AT, last, suppressed=False).status == "capped"
