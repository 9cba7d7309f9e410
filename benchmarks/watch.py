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
from clickwake.local.observe import metrics_by_pid
from schemas import topics

SAMPLE_S = 1.0
WINDOW_S = 60.0
BYTES, BLOCKS = "clickwake_memory_bytes", "clickwake_memory_blocks"
NOT_HELD = ("free", "block cache", "write buffers")  # it comes and goes, within bounds
FloatArray = npt.NDArray[np.float64]


@dataclass
class Samples:
    """Seconds since the beginning, and by name what was seen then: bytes of memory, records of lag; while nothing is under
    way also what a process held (`NOT_HELD` left out) and how many blocks Python's objects were in, NaN otherwise."""

    warm_up_s: float
    at_s: list[float] = field(default_factory=list)
    memory: dict[str, list[float]] = field(default_factory=dict)
    lag: dict[str, list[float]] = field(default_factory=dict)
    held: dict[str, list[float]] = field(default_factory=dict)
    blocks: dict[str, list[float]] = field(default_factory=dict)

    def by_minute(self, series: Sequence[float], comes_to: Callable[[FloatArray], np.floating]) -> list[float]:
        """What each whole minute after the warm-up comes to; NaN for one in which nothing was seen."""
        seen = np.asarray(series)
        minute = np.where(np.isnan(seen), -1, (np.asarray(self.at_s) - self.warm_up_s) // WINDOW_S)
        whole = int((self.at_s[-1] - self.warm_up_s) // WINDOW_S)
        return [float(comes_to(some)) if (some := seen[minute == one]).size else np.nan for one in range(whole)]


class Watch(threading.Thread):
    """Samples memory and lag until `over`; `without`: a process that is away on purpose."""

    def __init__(self, stage: Stage, warm_up_s: float, without: str = "") -> None:
        super().__init__(name="watch", daemon=True)
        self.stage, self.samples, self.over, self.without = stage, Samples(warm_up_s), threading.Event(), without
        self.quiet = threading.Event()  # set while nothing is under way
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
        samples, local, prefix, quiet = self.samples, self.stage.local, self.stage.prefix, self.quiet.is_set()
        samples.at_s.append(time.monotonic() - self._began)
        said = metrics_by_pid(self.stage.settings, BYTES, BLOCKS) if quiet else {}
        for name in local.names():
            if name == self.without:
                continue
            pid = local.pid(name)
            if pid is None:
                raise BenchFailed(f"{name} has ended; see its log")
            resident, of = psutil.Process(pid).memory_info(), said.get(pid, {BYTES: {}, BLOCKS: {}})
            samples.memory.setdefault(name, []).append(float(resident.rss))
            own = resident.rss - getattr(resident, "shared", 0)  # the system takes pages of files away as it needs them
            held = own - sum(of[BYTES].get(f'{{kind="{kind}"}}', 0.0) for kind in NOT_HELD)
            samples.held.setdefault(name, []).append(held if quiet else np.nan)
            samples.blocks.setdefault(name, []).append(of[BLOCKS].get('{kind="python"}', np.nan))
        ends = offsets.ends(topics.EVENTS)
        for name, group in (("personalize", f"{prefix}-personalize"), ("sink", f"{prefix}.sink")):
            samples.lag.setdefault(name, []).append(float(offsets.of(group, ends)))
