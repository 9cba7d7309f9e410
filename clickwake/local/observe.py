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
    for said in metrics_by_pid(settings, name).values():
        for label, value in said[name].items():
            found[label] = found.get(label, 0.0) + value
    return found


def metrics_by_pid(settings: Settings, *names: str) -> dict[int, dict[str, dict[str, float]]]:
    """Metrics of each personalize process by pid: name → label text → value; without the processes that do not answer."""
    found: dict[int, dict[str, dict[str, float]]] = {}
    for path in (settings.home / "run").glob("personalize-*.json"):
        process = json.loads(path.read_text())
        address = f"http://127.0.0.1:{process['metrics_port']}/metrics"  # loopback
        try:
            with urllib.request.urlopen(address, timeout=2) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            continue  # a process that has ended leaves its file behind
        said: dict[str, dict[str, float]] = {name: {} for name in names}
        for line in lines:
            name, brace, rest = line.partition("{")
            if brace and name in said:
                label, value = rest.rsplit(" ", 1)
                said[name][brace + label] = float(value)
        found[process["pid"]] = said
    return found
