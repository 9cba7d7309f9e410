"""The embedded server as a child process: start it, wait until it answers, stop it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import httpx

from clickwake import process
from clickwake.process import StartError

DEFAULT_PORT = 8123
START_TIMEOUT_S = 60.0
POLL_S = 0.05


class ClickHouseServer:
    """`python -m clickwake.local_clickhouse` with its data under `<home>/clickhouse`.

    `port=None` takes 8123, or any free port when that is taken; a port that is given must be free.
    """

    def __init__(self, home: Path, port: int | None = None) -> None:
        self.home = home.absolute()
        self.folder = self.home / "clickhouse"
        self.log = self.home / "logs" / "clickhouse.log"
        self.port = port or 0
        self._asked_port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def exit_code(self) -> int | None:
        """None while it runs or before it was started."""
        return self._process.poll() if self._process else None

    def prepare(self) -> list[str]:
        """Check port and folder; returns the command that runs the server."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._asked_port and not process.port_is_free(self._asked_port):
            raise StartError(f"port {self._asked_port} on {process.LOOPBACK} is taken, so ClickHouse cannot listen there. "
                             "Stop what uses it, or leave the port out to take a free one")
        self.port = self._asked_port or process.free_port(self.port or DEFAULT_PORT)
        return [sys.executable, "-m", "clickwake.local_clickhouse", "--port", str(self.port), "--path", str(self.folder)]

    def start(self) -> Self:
        """Start and wait until it answers a query. Raises `StartError` with the end of its log."""
        self._process = process.spawn(self.prepare(), self.log)
        try:
            self.wait()
        except BaseException:
            self.stop()
            raise
        return self

    def wait(self, timeout_s: float = START_TIMEOUT_S, exit_code: Callable[[], int | None] | None = None) -> None:
        """Return once it answers. `exit_code` tells of the process when somebody else runs the command."""
        deadline = time.monotonic() + timeout_s
        while not answers(process.LOOPBACK, self.port):
            code = (exit_code or self.exit_code)()
            if code is not None or time.monotonic() > deadline:
                what = f"did not answer in {timeout_s:.0f} s" if code is None else f"ended with code {code}"
                raise StartError(f"the ClickHouse server on {process.LOOPBACK}:{self.port} {what}.\n"
                                 f"End of {self.log}:\n{process.tail(self.log)}")
            time.sleep(POLL_S)  # it announces its readiness by answering, so there is nothing else to await

    def stop(self) -> None:
        """End the server; a second call does nothing."""
        if self._process:
            process.stop(self._process)
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def answers(host: str, port: int, *, secure: bool = False) -> bool:
    """Does a ClickHouse server answer there? Any other server's answer to `/ping` does not count."""
    try:
        answer = httpx.get(f"{'https' if secure else 'http'}://{host}:{port}/ping", timeout=5.0, trust_env=False)
    except httpx.HTTPError:
        return False
    return answer.status_code == 200 and answer.text.startswith("Ok.")
