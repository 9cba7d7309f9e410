"""Whether the released bundle does live what it promised; it is rolled back when it does not.

Two things are watched, both read from ClickHouse, so that serving pays nothing for it. The hit rate: the share of served
recommendations with a hit, against those of the bundles it comes from, in the same weeks and at the same hours of the day:
bundles that run for six hours would else be compared night with day. The inputs: events and times between them, against
those the bundle learned from (`drift`). Run by `clickwake models watch` and between two trainings of `training.schedule`.
"""

from __future__ import annotations

from itertools import islice

import msgspec
import numpy as np
import structlog

from stream.adapters.models.model_store import BundleRefused
from stream.core.statistics import drift
from stream.core.user.state import DAY_MS
from stream.settings import Settings
from training.evaluation.metrics import BOOTSTRAP_ROUNDS, FloatArray, Interval, interval
from training.history.live import Hits, Horizon, Live
from training.release import release

log = structlog.get_logger()

HITS_DAYS = 14.0  # recommendations this old still count: older ones are of another season
FALL_MAX = 0.1  # of the parent's hit rate: the band
SERVED_MIN = 200  # recommendations of either side, below which nothing is said
HOUR_MIN = 20  # of these in an hour of the day, below which it is left out
ANCESTORS_MAX = 64  # some two weeks of bundles that run for six hours
EVENTS_MIN = 500  # in each window


class Watched(msgspec.Struct, kw_only=True):
    """What was found; what `--json` prints. Rates are (value, 95% low, high). `parent`: the bundle to go back to; what was
    `served` by it, and its rate, are of all that ran `before` the current one, at the hours of the day at which both ran."""

    current: str
    parent: str | None = None
    before: list[str] = []
    horizon: Horizon
    served: dict[str, int] = {}
    hit_rate: dict[str, tuple[float, float, float]] = {}
    difference: tuple[float, float, float] | None = None  # current minus parent
    drift: dict[str, dict[str, float]] = {}  # bundle → feature → PSI
    left_band: list[str] = []  # in words; empty: all is well, or there is too little to say
    not_judged: list[str] = []  # in words, what of it before a colon
    rolled_back_to: str | None = None


def watch(settings: Settings, tenant: str, horizon: Horizon = "1d", *, act: bool = True) -> Watched:
    """Look once; with `act`, announce the parent when the current bundle has left its band, and keep the reason beside it.

    Drift alone is a reason only if the parent learned from inputs that are nearer: going back would not help otherwise,
    training would, and that is what is said. Raises ConnectionError, `NothingReleased`, BundleRefused.
    """
    now = release.current(settings)
    if now is None:
        raise release.NothingReleased("nothing was released yet, so there is nothing to watch; see clickwake models")
    found = Watched(current=now.model_version, horizon=horizon)
    try:
        found.before.extend(islice(release.ancestors(settings, now.model_version), ANCESTORS_MAX))
    except release.NothingReleased as error:
        found.not_judged.append(str(error))
    except BundleRefused:
        if not found.before:  # of those further back the registry may have none any more
            raise
    found.parent = next(iter(found.before), None)
    with Live(settings, tenant) as live:
        newest_ms = live.newest_ms()
        _hit_rates(found, live, newest_ms)
        _drifts(found, live, newest_ms, settings)
    if found.left_band and found.parent is not None and act:
        _roll_back(settings, found)
    return found


def _hit_rates(found: Watched, live: Live, newest_ms: int) -> None:
    since_ms = newest_ms - round(HITS_DAYS * DAY_MS)
    own = live.hits([found.current], since_ms, found.horizon)
    if found.parent is None:
        found.served, found.not_judged = {found.current: own.total}, [
            *found.not_judged, "hit rate: there is no parent to compare with"]
        if own.total:
            found.hit_rate[found.current] = msgspec.structs.astuple(rate(own, shares(own)))
        return
    own, other = at_common_hours(own, live.hits(found.before, since_ms, found.horizon))
    sides = {found.current: own, found.parent: other}
    found.served = {one: of.total for one, of in sides.items()}
    if few := [one for one, total in found.served.items() if total < SERVED_MIN]:
        found.not_judged.append(f"hit rate: fewer than {SERVED_MIN} recommendations of {', '.join(few)} at the hours of the "
                                "day at which both ran")  # fmt: skip
        return
    as_own = shares(own)
    found.hit_rate = {one: msgspec.structs.astuple(rate(of, as_own)) for one, of in sides.items()}
    ahead, old = difference(own, other, as_own), found.hit_rate[found.parent][0]
    found.difference = msgspec.structs.astuple(ahead)
    if fell(ahead, old):
        found.left_band.append(f"hit rate within {found.horizon} {old + ahead.value:.4f}, {found.parent} and before reach "
                               f"{old:.4f} at the same hours (difference {ahead.low:+.4f} … {ahead.high:+.4f})")  # fmt: skip


def _drifts(found: Watched, live: Live, newest_ms: int, settings: Settings) -> None:
    def learned_until_ms(version: str) -> int:
        return int(release.manifest_of(settings.registry, version).data_to.timestamp() * 1000)

    ends = {one: learned_until_ms(one) for one in (found.current, found.parent) if one is not None}
    window_ms = min(round(drift.WINDOW_DAYS_MAX * DAY_MS), newest_ms - ends[found.current])
    if window_ms < drift.WINDOW_DAYS_MIN * DAY_MS:
        found.not_judged.append("drift: less than a day of events since the bundle learned")
        return
    seen = live.inputs(newest_ms - window_ms, newest_ms)
    for version, end_ms in ends.items():
        reference = live.inputs(end_ms - window_ms, end_ms)
        if min(len(seen.names), len(reference.names)) < EVENTS_MIN:
            found.not_judged.append(f"drift against {version}: fewer than {EVENTS_MIN} events in a window")
            continue
        found.drift[version] = drift.drift(reference, seen)
    own = found.drift.get(found.current, {})
    moved = {name: value for name, value in own.items() if value > drift.PSI_MAX}
    if not moved:
        return
    said = ", ".join(f"{name} {value:.2f}" for name, value in moved.items())
    parent = found.drift.get(found.parent or "", {})
    if parent and max(parent.values()) < max(own.values()):
        found.left_band.append(f"inputs are others than it learned from: PSI {said}, at most {drift.PSI_MAX}; its parent's "
                               "were nearer")  # fmt: skip
    else:
        found.not_judged.append(f"inputs: others than it learned from (PSI {said}), its parent's no nearer; train again")


def _roll_back(settings: Settings, found: Watched) -> None:
    assert found.parent is not None
    reason = "; ".join(found.left_band)
    release.go_back(settings, found.current, found.parent, f"rolled back from {found.current}: {reason}", reason)
    found.rolled_back_to = found.parent
    log.error("rolled back", model_version=found.parent, before=found.current, why=reason)


def fell(ahead: Interval, parent_rate: float) -> bool:
    """Whether the hit rate left its band: it fell by more than FALL_MAX of the parent's, and that is no accident.

    >>> fell(Interval(-0.02, -0.03, -0.01), 0.1), fell(Interval(-0.02, -0.05, 0.01), 0.1)
    (True, False)
    """
    return ahead.value < -FALL_MAX * parent_rate and ahead.high < 0


def at_common_hours(one: Hits, other: Hits) -> tuple[Hits, Hits]:
    """Of either only the hours of the day in which both have HOUR_MIN recommendations."""
    both = np.minimum(one.served.sum(0), other.served.sum(0)) >= HOUR_MIN
    return Hits(one.served * both, one.hit * both), Hits(other.served * both, other.hit * both)


def shares(hits: Hits) -> FloatArray:
    """(24,) How recommendations are spread over the day."""
    by_hour: FloatArray = hits.served.sum(0) / max(1, hits.total)
    return by_hour


def rate(hits: Hits, as_spread: FloatArray) -> Interval:
    """Share of recommendations with a hit, were they spread over the day so; users are drawn, for one user's recommendations
    are much alike."""
    return interval(_value(hits, as_spread), _drawn(hits, as_spread, 0))


def difference(one: Hits, other: Hits, as_spread: FloatArray) -> Interval:
    """Rate of one minus that of another, spread alike; users of each are drawn apart."""
    value = _value(one, as_spread) - _value(other, as_spread)
    return interval(value, _drawn(one, as_spread, 1) - _drawn(other, as_spread, 2))


def _value(hits: Hits, as_spread: FloatArray) -> float:
    return _rate(hits.served.sum(0), hits.hit.sum(0), as_spread)


def _rate(served: FloatArray, hit: FloatArray, as_spread: FloatArray) -> float:
    there = served > 0
    return float((as_spread[there] * hit[there] / served[there]).sum() / as_spread[there].sum())


def _drawn(hits: Hits, as_spread: FloatArray, seed: int) -> FloatArray:
    """(ROUNDS,) rates over users drawn with replacement."""
    rng, users = np.random.default_rng(seed), len(hits.served)
    served, hit = hits.served.astype(np.float64), hits.hit.astype(np.float64)
    draws = np.empty(BOOTSTRAP_ROUNDS)
    for at in range(BOOTSTRAP_ROUNDS):
        times = np.bincount(rng.integers(0, users, users), minlength=users).astype(np.float64)
        draws[at] = _rate(times @ served, times @ hit, as_spread)
    return draws
