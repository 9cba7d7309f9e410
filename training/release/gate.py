"""Whether a new bundle may take the current one's place: both asked the same users on the newest held-out days, in pairs.

The candidate was learned from everything, the held-out days included, so it cannot be judged on them itself. A sibling is:
learned in the same way, with the candidate's blend and counts, from what came before those days. The days begin where the
current bundle's data end, if enough users came back since; else they are the newest tenth, of which the current bundle has
seen a part, which favours keeping it, and the verdict says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec
import numpy as np

from schemas.release import Manifest, Verdict
from stream.adapters.models.onnx import Bundle
from stream.serving import Serving
from stream.settings import Settings
from training import export, train
from training.evaluation.metrics import FloatArray, Interval, as_arrays, bootstrap
from training.history.snapshot import History
from training.recommend import held_out as offline
from training.recommend import judging
from training.text.texts import Texts

WORSE_MAX = 0.02  # of the current bundle's NDCG@10: a loss below this is not worth keeping older data for
USERS_MIN = 50  # who came back in the days that neither bundle has seen
MEASURE = "ndcg@10"  # what decides; the others are reported
SUB_TASKS = {"": "all items", "new": "items new to the user"}

Values = Mapping[str, Mapping[str, FloatArray]]  # sub-task → measure → each user's value (U,), users in the same order
Say = Callable[[str], None]


class Days(NamedTuple):
    """The held-out days."""

    from_ms: int
    end_ms: int
    unseen: bool  # by the current bundle


def days(history: History, current: Manifest) -> Days:
    """Where to judge, see the module. Raises `EmptyHistory` when the history is too short to be split."""
    _, test_ms, end_ms = train.windows(history)
    later_ms = max(test_ms, int(current.data_to.timestamp() * 1000) + 1)
    known = {event.user for event in history.events if event.ts_ms < later_ms}
    back = known & {event.user for event in history.events if event.ts_ms >= later_ms}
    if later_ms == test_ms or len(back) >= USERS_MIN:
        return Days(later_ms, end_ms, unseen=True)
    return Days(test_ms, end_ms, unseen=False)


def values(history: History, bundle: Bundle, texts: Texts, held_out: Days) -> judging.Values:
    """What a bundle is worth to each user who comes back in the held-out days, asked as a worker asks it when they begin.

    Whom it asks and for what depends on the history alone, so the values of two bundles pair. `texts` are in the bundle's
    space. A bundle that has seen the days is asked with links learned before them: its own know the
    answers. A sub-task that nobody was asked has values of nobody.
    """
    seen = int(bundle.manifest.data_to.timestamp() * 1000) >= held_out.from_ms
    found = offline.values(history, held_out.from_ms, held_out.end_ms, texts, bundle, Serving(bundle).blend, relink=seen)
    return {task: as_arrays([]) for task in SUB_TASKS} | found[offline.SERVED]


def differences(candidate: Values, current: Values) -> dict[str, Interval]:
    """`new.ndcg@10` … → candidate minus current, paired by user, with its 95% interval."""
    return {
        f"{task}.{measure}" if task else measure: bootstrap(np.asarray(candidate[task][measure]) - np.asarray(value))
        for task, measures in current.items() for measure, value in measures.items() if len(value)
    }  # fmt: skip


def worse(candidate: Values, current: Values) -> str | None:
    """Why the candidate may not replace the current bundle; None when it may.

    It may not when on all items, or on those new to the user, it loses more than WORSE_MAX of the current NDCG@10 and the
    95% interval of the paired difference lies below 0: a loss that matters and is no accident. Either alone does not do:
    with many users the smallest loss is significant, with few a large one is chance; then newer data are worth more.
    """
    for task, name in SUB_TASKS.items():
        old = np.asarray(current[task][MEASURE])
        if not len(old):
            continue
        found = bootstrap(np.asarray(candidate[task][MEASURE]) - old)
        if found.value < -WORSE_MAX * float(old.mean()) and found.high < 0:
            return (f"worse on {name}: NDCG@10 {old.mean() + found.value:.4f}, the current bundle reaches {old.mean():.4f}; "
                    f"paired difference {found.value:+.4f} ({found.low:+.4f} … {found.high:+.4f}) over {len(old)} users")
    return None


def judge(
    settings: Settings, history: History, texts: Texts, candidate: Manifest, current: Bundle, say: Say
) -> Verdict:
    """The verdict on a trained candidate; takes as long as learning once. `texts` are in the space of both."""
    held_out = days(history, current.manifest)
    say(f"learning from {history.name} before the held-out days, to judge {candidate.model_version}")
    past = history.until(held_out.from_ms)
    learned = train.learn(past, texts, settings, budget_s=settings.training.budget_s / 2)
    policies = msgspec.structs.replace(learned.bundle.manifest, blend=candidate.blend, counts=candidate.counts)
    sibling = export.open_files(policies, learned.files, settings.training.threads)
    new, old = values(history, sibling, texts, held_out), values(history, current, texts, held_out)
    why = worse(new, old)
    users = len(old[""][MEASURE])
    seen = "" if held_out.unseen else "; the current bundle had seen some of these days"
    return Verdict(
        model_version=candidate.model_version, against=current.manifest.model_version, released=why is None,
        reason=(why or f"not worse than {current.manifest.model_version} for {users} users of the newest days") + seen,
        judged_at=datetime.now(UTC), days_from=_utc(held_out.from_ms), days_to=_utc(held_out.end_ms - 1), users=users,
        ahead={name: (one.value, one.low, one.high) for name, one in differences(new, old).items()},
    )  # fmt: skip


def unjudged(candidate: Manifest, reason: str, against: str | None = None) -> Verdict:
    """A verdict that lets the candidate pass, because there is nothing it can be compared with."""
    return Verdict(model_version=candidate.model_version, against=against, released=True, reason=reason,
                   judged_at=datetime.now(UTC))


def _utc(ts_ms: int) -> datetime:
    return datetime.fromtimestamp(ts_ms / 1000, UTC)
