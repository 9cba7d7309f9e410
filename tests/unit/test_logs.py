"""Lines of the log: one an event, for people and for machines; within a traced call they name its trace."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import structlog
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from stream.logs import configure
from stream.settings import Settings


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[str]]]:
    """What was said so far, line by line."""
    root, before = logging.getLogger(), logging.getLogger().handlers[:]
    level = root.level
    yield lambda: capsys.readouterr().err.splitlines()
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def test_json_has_what_was_said_and_where_and_in_which_trace(lines: Callable[[], list[str]]) -> None:
    configure(Settings(log_format="json"))
    with TracerProvider().get_tracer("test").start_as_current_span("call") as span:
        structlog.get_logger("here").warning("item refused", item="茶", why='a "quoted" word\nand another line')
    logging.getLogger("elsewhere").error("of a library: %d", 7)
    first, second = map(json.loads, lines())
    assert first["trace_id"] == trace.format_trace_id(span.get_span_context().trace_id)
    assert (first["event"], first["item"], first["level"], first["logger"]) == ("item refused", "茶", "warning", "here")
    assert first["why"].endswith("another line") and "T" in first["timestamp"]
    assert (second["event"], second["logger"]) == ("of a library: 7", "elsewhere") and "trace_id" not in second


def test_logfmt_is_one_line_an_event_whatever_is_in_it(lines: Callable[[], list[str]]) -> None:
    configure(Settings())
    structlog.get_logger("here").error("refused", why="two\nlines", error=ValueError("x"))
    (line,) = lines()
    assert "event=refused" in line and "level=error" in line


@pytest.mark.parametrize("log_format", ["json", "logfmt"])
def test_no_url_is_said_with_its_password(lines: Callable[[], list[str]], log_format: str) -> None:
    configure(Settings.model_validate({"log_format": log_format}))
    url = "webdav://me:secret-1@files.example/models"
    try:
        raise OSError(f"{url} is away")
    except OSError as error:
        structlog.get_logger("here").warning("away", registry=url, why=str(error), exc_info=error)
    logging.getLogger("elsewhere").error("GET %s", url)
    told = "\n".join(lines())
    assert "secret-1" not in told and told.count("webdav://files.example/models") >= 4


def test_the_level_is_obeyed(lines: Callable[[], list[str]]) -> None:
    configure(Settings(log_level="WARNING"))
    structlog.get_logger("here").info("not said")
    structlog.get_logger("here").warning("said")
    (line,) = lines()
    assert "event=said" in line


def test_a_process_that_ends_in_native_code_says_where() -> None:
    script = ("import faulthandler; from stream.logs import configure; from stream.settings import Settings\n"
              "configure(Settings()); faulthandler._sigsegv()")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGSEGV and "Segmentation fault" in done.stderr and "<string>" in done.stderr
