"""The embedded server as a child process."""

from __future__ import annotations

import sys

import httpx

from clickwake import process
from clickwake.local_server import LocalServer


class ClickHouseServer(LocalServer):
    """`python -m clickwake.local_clickhouse` with its data under `<home>/clickhouse`."""

    name = "ClickHouse"
    default_port = 8123

    def prepare(self) -> list[str]:
        """Check port and folder; returns the command that runs the server."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.take_port()
        return [sys.executable, "-m", "clickwake.local_clickhouse", "--port", str(self.port), "--path", str(self.folder)]

    def answers(self) -> bool:
        return answers(process.LOOPBACK, self.port)


def answers(host: str, port: int, *, secure: bool = False) -> bool:
    """Does a ClickHouse server answer there? Any other server's answer to `/ping` does not count."""
    try:
        answer = httpx.get(f"{'https' if secure else 'http'}://{host}:{port}/ping", timeout=5.0, trust_env=False)
    except httpx.HTTPError:
        return False
    return answer.status_code == 200 and answer.text.startswith("Ok.")
