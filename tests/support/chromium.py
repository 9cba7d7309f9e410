"""The system's Chromium, which playwright drives."""

from __future__ import annotations

import os
import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome")
NONE = f"no browser: install one of {', '.join(NAMES)}, or name it in CLICKWAKE_TEST_CHROMIUM"


def chromium() -> str | None:
    """Where it is, if there is one."""
    return os.environ.get("CLICKWAKE_TEST_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
