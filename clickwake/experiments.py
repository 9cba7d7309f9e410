"""`clickwake experiments`: the file checked, and the arms beside each other."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from clickwake.answering import asking, refused, rows
from stream.api.experiments import ExperimentsError, load
from stream.core.experiments.effects import Sizes, Verdict, judged, sizes
from stream.core.experiments.experiments import Arm, Experiment
from stream.core.statistics.confidence import Sample
from stream.settings import load as load_settings

METRICS = """SELECT tenant, experiment, arm, metric, users, pending, some, mean, variance, mean_before, variance_before,
    covariance
FROM experiment_metrics ORDER BY tenant, experiment, arm, metric"""
FORMS = {"revenue": ".2f", "orders": ".3f"}  # the others are shares of users


def check(*, as_json: bool) -> int:
    """Whether the file of experiments can be used; 1 when not, with the reason."""
    path = load_settings().experiments_file
    try:
        found = load(path)
    except ExperimentsError as error:
        return refused(error, as_json=as_json)
    if as_json:
        print(msgspec.json.encode({"ok": True, "experiments": found}).decode())
        return 0
    for one in found:
        arms = ", ".join(arm.name for arm in one.arms)
        Console().print(f"{one.name}: {one.scenario}, {one.share:.0%} of users, arms {arms}", highlight=False)
    return 0


@asking
def results(*, as_json: bool) -> int:
    """Each arm of each experiment beside the first, by each measure, and what may be done about it."""
    settings = load_settings()
    try:
        known = {one.name: one for one in load(settings.experiments_file)} if settings.experiments_file.exists() else {}
    except ExperimentsError as error:
        return refused(error, as_json=as_json)
    (found,) = rows(settings.clickhouse, METRICS)
    ran = [_judged(known, some) for some in _by_experiment(found)]
    if as_json:
        print(msgspec.json.encode(ran).decode())
        return 0
    if not ran:
        Console().print("nobody has seen an answer of an experiment yet; they are written in "
                        f"{settings.experiments_file}, see docs/experiments.md", highlight=False, soft_wrap=True)
    for one in ran:
        _show(one)
    return 0


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an experiment of a tenant. `listed`: the file has it, so its first arm and its primary measure are known;
    else arms are compared with the first by name, by clicks, and nobody knows the `sizes` they should have. `pending`
    users of each arm do not count yet."""

    tenant: str
    experiment: str
    listed: bool
    control: str
    primary: str
    users: dict[str, int]
    pending: dict[str, int]
    sizes: Sizes | None
    arms: list[Verdict]


def _by_experiment(found: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    return [list(some) for _, some in groupby(found, key=itemgetter("tenant", "experiment"))]


def _judged(known: dict[str, Experiment], some: list[dict[str, Any]]) -> Ran:
    tenant, name = some[0]["tenant"], some[0]["experiment"]
    listed = known.get(name)
    arms = tuple(Arm(name=arm) for arm in dict.fromkeys(row["arm"] for row in some))
    one = listed or Experiment(name=name, arms=arms)
    samples = {(row["arm"], row["metric"]): sample(row) for row in some}
    users, pending = ({row["arm"]: row[which] for row in some} for which in ("users", "pending"))
    known_sizes = sizes(listed, {arm: n + pending[arm] for arm, n in users.items()}) if listed else None
    return Ran(
        tenant=tenant, experiment=name, listed=listed is not None, control=one.arms[0].name, primary=one.primary,
        users=users, pending=pending, sizes=known_sizes,
        arms=judged(one, samples, as_assigned=known_sizes is None or known_sizes.as_assigned),
    )  # fmt: skip


def sample(row: dict[str, Any]) -> Sample:
    """A row of experiment_metrics."""
    return Sample(row["users"], row["mean"], row["variance"], row["some"], row["mean_before"], row["variance_before"],
                  row["covariance"])  # fmt: skip


def _show(one: Ran) -> None:
    console = Console()
    users = ", ".join(f"{arm} {n:,} (+{one.pending[arm]:,} whose 7 days are not over)" for arm, n in one.users.items())
    console.print(f"{one.experiment}, tenant {one.tenant}: {users}", highlight=False, markup=False, soft_wrap=True)
    if not one.listed:
        console.print(f"not in the file any more: compared with {one.control!r}, by clicks", style="yellow", markup=False,
                      highlight=False, soft_wrap=True)  # fmt: skip
    if one.sizes and not one.sizes.as_assigned:
        seen = ", ".join(f"{arm} {n:,} ({one.sizes.assigned[arm]:.0%} were assigned)" for arm, n in one.sizes.users.items())
        console.print(f"the arms are not as large as they were made: {seen}; by chance in one of "
                      f"{1 / max(one.sizes.chance, 1e-12):,.0f} experiments. Believe nothing of it before it is known why: "
                      "pages that fail or are slow in one arm, views of lists that are not sent, arms changed while it ran",
                      style="red", markup=False, highlight=False, soft_wrap=True)  # fmt: skip
    table = Table("arm", "measure", "", f"mean of {one.control}", "mean", "difference", "", box=None, header_style="dim")
    for arm in one.arms:
        for effect in arm.effects:
            form = FORMS.get(effect.metric, ".2%")
            between = "too few users" if effect.low is None else f"{effect.low:+{form}} to {effect.high:+{form}}"
            table.add_row(arm.arm, effect.metric, effect.role, f"{effect.control_mean:{form}}", f"{effect.mean:{form}}",
                          f"{effect.difference:+{form}} ({between})", effect.verdict)  # fmt: skip
    console.print(table)
    for arm in one.arms:
        console.print(f"{arm.arm} against {arm.against}: {arm.decision}", highlight=False, markup=False)
