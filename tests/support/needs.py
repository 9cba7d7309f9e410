"""What some tests need and not every machine has. Without it they are skipped, and the run says so at its end. With CI=true
what any machine can have must be there, or be named in CLICKWAKE_TEST_WITHOUT (`chromium,…`)."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import pytest

PROGRAMS: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "chromium": ("chromium", "chromium-browser", "google-chrome"), "docker": ("docker",), "kubectl": ("kubectl",),
    "prometheus": ("prometheus",), "promtool": ("promtool",),
})  # fmt: skip
IN_CI = frozenset({"chromium", "prometheus", "promtool"})


def program(name: str) -> str | None:
    """Where one of PROGRAMS is: on the path, or where CLICKWAKE_TEST_<NAME> says."""
    told = os.environ.get(f"CLICKWAKE_TEST_{name.upper()}")
    return told or next(filter(None, map(shutil.which, PROGRAMS[name])), None)


def absent(name: str) -> str:
    """What to do about a program that is not there.

    >>> absent("chromium")
    'chromium: install it (chromium, chromium-browser or google-chrome), or name it in CLICKWAKE_TEST_CHROMIUM'
    """
    *others, last = PROGRAMS[name]
    names = f" ({', '.join(others)} or {last})" if others else ""
    return f"{name}: install it{names}, or name it in CLICKWAKE_TEST_{name.upper()}"


def needs(name: str) -> str:
    """Where one of PROGRAMS is; ends the test where it is not."""
    return program(name) or _without(name, absent(name))


def needs_file(path: Path) -> Path:
    """A file of the public data sets; ends the test where it is not there."""
    return path if path.exists() else without(f"{path.name}: {path} is not there; CLICKWAKE_TEST_DATA names the folder")


def without(why: str) -> NoReturn:
    """End a test that cannot be tried here. `why`: what is missing, and what to do."""
    pytest.skip(why)


def _without(name: str, why: str) -> NoReturn:
    allowed = os.environ.get("CLICKWAKE_TEST_WITHOUT", "").split(",")
    if name in IN_CI and os.environ.get("CI") == "true" and name not in allowed:
        pytest.fail(f"{why}. In CI that is no reason to skip, unless CLICKWAKE_TEST_WITHOUT={name} says so", pytrace=False)
    without(why)


def not_tried(skipped: Iterable[Any]) -> list[str]:
    """A line for each reason for which tests were skipped, from their reports."""
    reasons = Counter(str(one.longrepr[2]).removeprefix("Skipped: ") for one in skipped)
    return [f"not tried here: {count} for want of {why}" for why, count in sorted(reasons.items())]
