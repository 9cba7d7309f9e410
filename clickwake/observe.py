"""What is seen of a running installation's workers from outside: their metrics."""

from __future__ import annotations

import json
import urllib.request

from stream.settings import Settings


def owed(settings: Settings) -> int:
    """Recommendations the personalize processes have not made yet."""
    return round(sum(metric(settings, "clickwake_recommendations_owed").values()))


def metric(settings: Settings, name: str) -> dict[str, float]:
    """A metric of the personalize processes, label text → sum over processes; empty while none answers."""
    found: dict[str, float] = {}
    for said in metric_by_pid(settings, name).values():
        for label, value in said.items():
            found[label] = found.get(label, 0.0) + value
    return found


def metric_by_pid(settings: Settings, name: str) -> dict[int, dict[str, float]]:
    """A metric of each personalize process, label text → value; without the processes that do not answer."""
    found: dict[int, dict[str, float]] = {}
    for path in (settings.home / "run").glob("personalize-*.json"):
        process = json.loads(path.read_text())
        address = f"http://127.0.0.1:{process['metrics_port']}/metrics"  # loopback
        try:
            with urllib.request.urlopen(address, timeout=2) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            continue  # a process that has ended leaves its file behind
        values = (line[len(name) :].rsplit(" ", 1) for line in lines if line.startswith(name + "{"))
        found[process["pid"]] = {label: float(value) for label, value in values}
    return found
