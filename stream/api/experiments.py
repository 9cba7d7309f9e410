"""The file of experiments, taken over while the API runs."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from stream.adapters.watched import Watched
from stream.core.experiments.experiments import Arm, Experiment, ExperimentsFile
from stream.core.expressions.expression import ExpressionError, parse
from stream.core.ranking.index import FIELDS
from stream.core.ranking.scenarios import PERSONAL

LOOK_S = 1.0
NO_ARM = Arm(name="none")


class ExperimentsError(ValueError):
    """The file cannot be used; the message says which part and why."""


def load(path: Path) -> tuple[Experiment, ...]:
    """Raises ExperimentsError."""
    try:
        found = msgspec.yaml.decode(path.read_bytes(), type=ExperimentsFile).experiments
    except (OSError, msgspec.MsgspecError) as error:
        raise ExperimentsError(f"{path}: {error}") from error
    if len({one.name for one in found}) < len(found):
        raise ExperimentsError(f"{path}: two experiments have one name")
    for one in found:
        if len({arm.name for arm in one.arms}) < len(one.arms):
            raise ExperimentsError(f"{path}: experiment {one.name!r} has two arms of one name")
        for arm in one.arms:
            if arm.explore and one.scenario not in PERSONAL:
                raise ExperimentsError(f"{path}: experiment {one.name!r}, arm {arm.name!r}: `explore` counts in scenarios "
                                       f"{' and '.join(PERSONAL)} only, and does nothing in {one.scenario}: leave it out")
            try:
                for text, kind in ((arm.filter, "flag"), (arm.boost, "number")):
                    if text is not None:
                        parse(text, FIELDS, "flag" if kind == "flag" else "number")
            except ExpressionError as error:
                raise ExperimentsError(f"{path}: experiment {one.name!r}, arm {arm.name!r}: {error}") from error
    return found


class Experiments:
    """What runs now."""

    def __init__(self, path: Path) -> None:
        self._file: Watched[tuple[Experiment, ...]] = Watched(path, load, (), "experiments")
        self._looked_at = 0.0

    def current(self) -> tuple[Experiment, ...]:
        """Looks at the file at most once a second."""
        if time.monotonic() - self._looked_at > LOOK_S:
            self._looked_at = time.monotonic()
            self._file.look()
        return self._file.value
