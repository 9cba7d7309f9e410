"""A bundle to measure with: trained once by the real training code on simulated history, then kept beside the home."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.observe import BenchFailed
from producers.simulate.mess import Record
from producers.simulate.targets import FileTarget, catalog_path
from producers.simulate.world import World
from schemas.release import FORMAT_VERSION
from stream.core.user.featurize import FEATURE_VERSION

SHOPPERS, DAYS = 400, 60
BUDGET_S = 20  # of the user encoder: its size, not its quality, is what a rate depends on


def train_once(home: Path, cache: Path, *, seed: int, items: int, tenant: str, end: datetime,
               say: Callable[[str], None]) -> str:
    """Put a bundle and its text encoder into the home's registry; returns the model version. Raises `BenchFailed`."""
    asked = {"seed": seed, "items": items, "tenant": tenant, "shoppers": SHOPPERS, "days": DAYS, "budget_s": BUDGET_S,
             "features": FEATURE_VERSION, "format": FORMAT_VERSION}
    mark = cache / "bench.json"
    kept: dict[str, Any] = json.loads(mark.read_text()) if mark.exists() else {}
    if kept.get("asked") != asked:
        shutil.rmtree(cache, ignore_errors=True)
        kept = {"asked": asked, "model_version": _train(home, asked, end, say)}
        shutil.copytree(home / "models", cache)
        mark.write_text(json.dumps(kept))
    else:
        say("bundle of an earlier run")
        shutil.copytree(cache, home / "models", dirs_exist_ok=True)
    return str(kept["model_version"])


def _train(home: Path, asked: dict[str, Any], end: datetime, say: Callable[[str], None]) -> str:
    say("simulating a history to learn from")
    world = World(asked["seed"], SHOPPERS, DAYS, end - timedelta(days=DAYS), items=asked["items"], tenant=asked["tenant"])
    events = home / "training" / "events.jsonl"
    with FileTarget(events) as target:
        target.catalog(world.items())
        for event in world.history():
            target.send(Record.of(event))
    say("training")
    log = home / "logs" / "train.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as errors:
        done = subprocess.run(
            [sys.executable, "-m", "clickwake", "train", "--events", str(events), "--items", str(catalog_path(events)),
             "--no-release", "--json"], stdout=subprocess.PIPE, stderr=errors, check=False,
            env={**os.environ, "CLICKWAKE_HOME": str(home), "CLICKWAKE_TRAINING__BUDGET_S": str(BUDGET_S)})  # fmt: skip
    if done.returncode:
        raise BenchFailed(f"clickwake train ended with code {done.returncode}; see {log}")
    return str(json.loads(done.stdout)["manifest"]["model_version"])
