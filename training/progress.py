"""How far a training has come, and a bar on standard error that shows it."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

TIME_SLACK = 0.2


def progress() -> Progress:
    """To be entered with `with`; gone when it ends, so that what is printed stays readable."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def share_done(step: int, steps: int, seconds: float, budget_s: float) -> float:
    """From 0 to 1 and beyond: by steps, or by time where that is further on and will be the end.

    Time counts a little less while there is much left, so that a run which ends well within its budget goes by steps alone
    and is the same on a fast machine and a slow one.

    >>> share_done(0, 100, 0.5, 60.0), share_done(50, 100, 30.0, 60.0), share_done(10, 100, 60.0, 60.0)
    (0.0, 0.5, 1.0)
    """
    by_time = seconds / budget_s
    return max(step / steps, by_time - TIME_SLACK * (1.0 - by_time))
