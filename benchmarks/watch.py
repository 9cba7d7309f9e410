"""What a benchmark watches while it runs: the memory of each process, and how far the groups are behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import psutil

from benchmarks.observe import BenchFailed, Places
from benchmarks.stage import Stage
from clickwake.observe import metric
from schemas import topics

SAMPLE_S = 1.0
WINDOW_S = 60.0
FloatArray = npt.NDArray[np.float64]


@dataclass
class Samples:
    """Seconds since the beginning, and by name what was seen then: bytes of memory, records of lag."""

    warm_up_s: float
    at_s: list[float] = field(default_factory=list)
    memory: dict[str, list[float]] = field(default_factory=dict)
    lag: dict[str, list[float]] = field(default_factory=dict)
    held: dict[str, list[float]] = field(default_factory=dict)  # what all personalize processes hold, once a minute

    def by_minute(self, series: Sequence[float], comes_to: Callable[[FloatArray], np.floating]) -> list[float]:
        """What each whole minute after the warm-up comes to."""
        minute, seen = (np.asarray(self.at_s) - self.warm_up_s) // WINDOW_S, np.asarray(series)
        return [float(comes_to(seen[minute == one])) for one in range(int(minute[-1]))]


class Watch(threading.Thread):
    """Samples memory and lag until `over`; `without`: a process that is away on purpose."""

    def __init__(self, stage: Stage, warm_up_s: float, without: str = "") -> None:
        super().__init__(name="watch", daemon=True)
        self.stage, self.samples, self.over, self.without = stage, Samples(warm_up_s), threading.Event(), without
        self._began = time.monotonic()
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            with Places(self.stage.settings) as offsets:
                while not self.over.wait(SAMPLE_S):
                    self._take(offsets)
        except Exception as error:  # `end` says it, in the caller's thread
            self.error = error

    def end(self) -> Samples:
        """What was seen. Raises what ended the watching."""
        self.over.set()
        self.join()
        if self.error is not None:
            raise self.error
        return self.samples

    def _take(self, offsets: Places) -> None:
        samples, local, prefix = self.samples, self.stage.local, self.stage.prefix
        samples.at_s.append(time.monotonic() - self._began)
        for name in local.names():
            if name == self.without:
                continue
            pid = local.pid(name)
            if pid is None:
                raise BenchFailed(f"{name} has ended; see its log")
            samples.memory.setdefault(name, []).append(float(psutil.Process(pid).memory_info().rss))
        ends = offsets.ends(topics.EVENTS)
        for name, group in (("personalize", f"{prefix}-personalize"), ("sink", f"{prefix}.sink")):
            samples.lag.setdefault(name, []).append(float(offsets.of(group, ends)))
        if len(samples.at_s) % round(WINDOW_S / SAMPLE_S) == 0:
            for name in ("clickwake_memory_bytes", "clickwake_memory_blocks"):
                for label, value in metric(self.stage.settings, name).items():
                    samples.held.setdefault(name + label, []).append(value)
