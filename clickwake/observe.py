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
    for path in (settings.home / "run").glob("personalize-*.json"):
        port = json.loads(path.read_text())["metrics_port"]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as answer:  # loopback
                text = answer.read().decode()
        except OSError:
            continue  # a process that has ended leaves its file behind
        for line in text.splitlines():
            if line.startswith(name + "{"):
                label, value = line[len(name) :].rsplit(" ", 1)
                found[label] = found.get(label, 0.0) + float(value)
    return found
