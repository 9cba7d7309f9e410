"""A server of this machine as a child process: a port, a start that waits for an answer, a stop that leaves nothing."""

from __future__ import annotations

import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Self

from clickwake.local import process
from clickwake.local.process import StartError

START_TIMEOUT_S = 90.0
POLL_S = 0.05


class LocalServer(ABC):
    """`port=None` takes the usual port, or any free one when that is taken; a port that is given must be free."""

    name: str
    default_port: int

    def __init__(self, home: Path, port: int | None = None) -> None:
        self.home = home.absolute()
        self.folder = self.home / self.name.lower()
        self.log = self.home / "logs" / f"{self.name.lower()}.log"
        self.port = port or 0
        self._asked_port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"{process.LOOPBACK}:{self.port}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def exit_code(self) -> int | None:
        """None while it runs or before it was started."""
        return self._process.poll() if self._process else None

    @abstractmethod
    def prepare(self) -> list[str]:
        """Check what it needs; returns the command that runs the server. Raises `StartError`."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it serves."""

    def advice(self) -> str:
        """What its log suggests to do when it does not start."""
        return ""

    def take_port(self) -> None:
        """Settle on a free port. Raises `StartError` when the one that was asked for is taken."""
        if self._asked_port and not process.port_is_free(self._asked_port):
            raise StartError(f"port {self._asked_port} on {process.LOOPBACK} is taken, so {self.name} cannot listen there. "
                             "Stop what uses it, or leave the port out to take a free one")
        self.port = self._asked_port or process.free_port(self.port or self.default_port)

    def start(self) -> Self:
        """Start and wait until it answers. Raises `StartError` with the end of its log."""
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
        while not self.answers():
            code = (exit_code or self.exit_code)()
            if code is not None or time.monotonic() > deadline:
                what = f"ended with code {code}" if code is not None else f"did not answer within {timeout_s:.0f} s"
                raise StartError(f"{self.name} on {self.address} {what}. {self.advice()}\n"
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
