"""`python -m clickwake.local.clickhouse --port 8123 --path .clickwake/clickhouse`: the embedded ClickHouse server."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import psutil

from clickwake.local.clickhouse.errors import QueryError
from clickwake.local.clickhouse.pool import Pool

MEMORY_BYTES_MAX_DEFAULT = 8 << 30
EXECUTION_S_MAX_DEFAULT = 300


def main() -> None:
    half = min(psutil.virtual_memory().total // 2, MEMORY_BYTES_MAX_DEFAULT)
    parser = argparse.ArgumentParser(prog="python -m clickwake.local.clickhouse", description=__doc__)
    parser.add_argument("--port", type=int, default=8123, help="on 127.0.0.1")
    parser.add_argument("--path", type=Path, default=Path(".clickwake/clickhouse"),
                        help="data folder, of one process at a time")
    parser.add_argument("--max-execution-time", type=int, default=EXECUTION_S_MAX_DEFAULT,
                        help="seconds a query may run unless it says otherwise; 0: no limit (default %(default)s)")
    parser.add_argument("--max-memory-usage", type=int, default=half,
                        help="bytes a query may use by default; 0: no limit (unset: half of all, 8 GiB at most)")
    options = parser.parse_args()
    os.environ["TZ"] = "UTC"  # the engine takes its time zone from here, and every stored time is UTC
    time.tzset()
    serve(options.port, options.path,
          {"max_execution_time": str(options.max_execution_time), "max_memory_usage": str(options.max_memory_usage),
           "implicit_select": "0"})  # the library reads `1 + 1` as a query, a server does not


def serve(port: int, path: Path, defaults: dict[str, str]) -> None:
    """Serve until SIGTERM or SIGINT; running queries get a moment to end."""
    import uvicorn

    from clickwake.local.clickhouse.server import Server
    from stream.settings import load

    account = load().clickhouse
    path.mkdir(parents=True, exist_ok=True)
    try:
        server = Server(Pool(path, defaults), account.user, account.password.get_secret_value())
    except QueryError as error:
        sys.exit(f"cannot open {path}: {error.text}\nIf another server uses this folder, stop it (`clickwake down`).")
    uvicorn.run(server, host="127.0.0.1", port=port, log_level="warning", access_log=False, lifespan="on", http="httptools",
                timeout_graceful_shutdown=5, timeout_keep_alive=30, server_header=False)


if __name__ == "__main__":
    main()
