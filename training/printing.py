"""How the commands of training end: what they found, as JSON, or what went wrong, in one line."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import msgspec
from rich.console import Console

from producers.datasets.table import DatasetError
from producers.kafka import KafkaUnavailable, NotAcknowledged
from stream.adapters.models.model_store import BundleRefused
from training.history.snapshot import EmptyHistory
from training.parity import ParityFailed
from training.release.release import NothingReleased

EXPECTED = (EmptyHistory, DatasetError, BundleRefused, NothingReleased, ParityFailed, KafkaUnavailable, NotAcknowledged,
            ConnectionError, FileNotFoundError, ValueError)  # fmt: skip
console = Console(stderr=True)


def fail(error: Exception) -> NoReturn:
    """Say what went wrong, without a traceback, and end with status 1."""
    console.print(f"[red]{error}[/red]", markup=True, highlight=False)
    raise SystemExit(1) from error


def print_json(value: Any) -> None:
    """On standard output."""
    sys.stdout.write(to_json(value))


def to_json(value: Any) -> str:
    """Indented, with a line end."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"
