"""A real browser: the system's Chromium, driven through playwright. Tests that need it skip where there is none."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from stream.settings import ClickHouse, Kafka, Settings

NAMES = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT_MS = 15_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for a module, not for the session: while playwright is open its event loop counts as running in this thread, and
    every `asyncio.run` of a later test would be refused."""
    path = os.environ.get("CLICKWAKE_TEST_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser: install one of {', '.join(NAMES)}, or name it in CLICKWAKE_TEST_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lasting(kafka: str, clickhouse: ClickHouse, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """`settings` for what all tests of a module look at: starting it takes longer than looking."""
    prefix = f"t{uuid.uuid4().hex[:10]}"
    return Settings(
        home=tmp_path_factory.mktemp("home"),
        kafka=Kafka.model_validate({"bootstrap_servers": kafka, "topic_prefix": prefix}),
        clickhouse=clickhouse.model_copy(update={"database": prefix}),
    )


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of a new visitor; a script error on it fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert errors == []
