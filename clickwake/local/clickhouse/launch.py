"""The embedded server as a child process."""

from __future__ import annotations

import ssl
import sys
from pathlib import Path

import httpx

from clickwake.local import process
from clickwake.local.server import LocalServer


class ClickHouseServer(LocalServer):
    """`python -m clickwake.local.clickhouse` with its data under `<home>/clickhouse`."""

    name = "ClickHouse"
    default_port = 8123

    def prepare(self) -> list[str]:
        """Check port and folder; returns the command that runs the server."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.take_port()
        return [sys.executable, "-m", "clickwake.local.clickhouse", "--port", str(self.port), "--path", str(self.folder)]

    def answers(self) -> bool:
        return answers(process.LOOPBACK, self.port)


def answers(host: str, port: int, *, secure: bool = False, ca_file: Path | None = None) -> bool:
    """Does a ClickHouse server answer there? Any other server's answer to `/ping` does not count."""
    trusted = True if ca_file is None else ssl.create_default_context(cafile=str(ca_file))
    url = f"{'https' if secure else 'http'}://{host}:{port}/ping"
    try:
        answer = httpx.get(url, timeout=5.0, trust_env=False, verify=trusted)
    except httpx.HTTPError:
        return False
    return answer.status_code == 200 and answer.text.startswith("Ok.")
