"""Whether the released bundle does live what it promised; it is rolled back when it does not.

Two things are watched, both read from ClickHouse, so that serving pays nothing for it. The hit rate: the share of served
recommendations with a hit, against the parent's in the same weeks. The inputs: events and times between them, against those
the bundle learned from (`drift`). Run by `clickwake models watch` and between two trainings of `training.schedule`.
"""

from __future__ import annotations

import msgspec
import numpy as np
import structlog

from stream.core.statistics import drift
from stream.core.user.state import DAY_MS
from stream.settings import Settings
from training.evaluation.metrics import BOOTSTRAP_ROUNDS, FloatArray, Interval, interval
from training.history.live import Hits, Horizon, Live
from training.release import release

log = structlog.get_logger()

HITS_DAYS = 14.0  # recommendations this old still count: older ones are of another season
FALL_MAX = 0.1  # of the parent's hit rate: the band
SERVED_MIN = 200  # recommendations of each bundle, below which nothing is said
EVENTS_MIN = 500  # in each window


class Watched(msgspec.Struct, kw_only=True):
    """What was found; what `--json` prints. Rates are (value, 95% low, high)."""

    current: str
    parent: str | None = None
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
        found.parent = release.before(settings, now.model_version)
    except release.NothingReleased as error:
        found.not_judged.append(str(error))
    with Live(settings, tenant) as live:
        newest_ms = live.newest_ms()
        _hit_rates(found, live, newest_ms)
        _drifts(found, live, newest_ms, settings)
    if found.left_band and found.parent is not None and act:
        _roll_back(settings, found)
    return found


def _hit_rates(found: Watched, live: Live, newest_ms: int) -> None:
    since_ms = newest_ms - round(HITS_DAYS * DAY_MS)
    versions = [one for one in (found.current, found.parent) if one is not None]
    hits = {one: live.hits(one, since_ms, found.horizon) for one in versions}
    found.served = {one: of.total for one, of in hits.items()}
    few = [one for one, of in hits.items() if of.total < SERVED_MIN]
    for one in versions:
        if hits[one].total:
            found.hit_rate[one] = msgspec.structs.astuple(rate(hits[one]))
    if few or found.parent is None:
        found.not_judged.append(f"hit rate: fewer than {SERVED_MIN} recommendations of {', '.join(few)}" if few
                                else "hit rate: there is no parent to compare with")  # fmt: skip
        return
    ahead = difference(hits[found.current], hits[found.parent])
    found.difference = msgspec.structs.astuple(ahead)
    old = found.hit_rate[found.parent][0]
    if fell(ahead, old):
        found.left_band.append(f"hit rate within {found.horizon} {old + ahead.value:.4f}, {found.parent} reaches {old:.4f} "
                               f"(difference {ahead.low:+.4f} … {ahead.high:+.4f})")  # fmt: skip


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


def rate(hits: Hits) -> Interval:
    """Share of recommendations with a hit; users are drawn, for one user's recommendations are much alike."""
    return interval(float(hits.hit.sum() / hits.served.sum()), _drawn(hits, 0))


def difference(one: Hits, other: Hits) -> Interval:
    """Rate of one minus that of another; users of each are drawn apart."""
    value = one.hit.sum() / one.served.sum() - other.hit.sum() / other.served.sum()
    return interval(float(value), _drawn(one, 1) - _drawn(other, 2))


def _drawn(hits: Hits, seed: int) -> FloatArray:
    """(ROUNDS,) rates over users drawn with replacement."""
    rng, users = np.random.default_rng(seed), len(hits.served)
    draws = np.empty(BOOTSTRAP_ROUNDS)
    for at in range(BOOTSTRAP_ROUNDS):
        chosen = rng.integers(0, users, users)
        draws[at] = hits.hit[chosen].sum() / hits.served[chosen].sum()
    return draws
