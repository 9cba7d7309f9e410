"""What the batch transport gains: a bare Faust agent and a batch agent on the same topic, one after the other, in one run.

    python benchmarks/transport.py --servers 127.0.0.1:9092 [--records 400000] [--bare-records 20000]

Each agent runs in a process of its own, does nothing but count, and is timed from its first record to its last. Prints
one JSON object: rates in records/s and their ratio, how fast state goes out (1 KB values, acknowledged), and how fast a
store is rebuilt from the changelog.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from stream.adapters.faust import faust_compat
from stream.adapters.faust.faust_compat import RecordBatch
from stream.adapters.kafka import producing
from stream.adapters.state import changelog
from stream.adapters.state.state_store import Identity, PartitionStore
from stream.settings import Settings

PARTITIONS = 4
EVENT_BYTES = 300  # a track event of the simulator
STATE_BYTES = 1_000
Role = dict[str, Any]


def settings_of(role: Role) -> Settings:
    kafka = {"bootstrap_servers": role["servers"], "topic_prefix": role["prefix"]}
    return Settings.model_validate({"home": role["home"], "kafka": kafka})


def report(role: Role, records: int, seconds: float) -> None:
    Path(role["result"]).write_text(json.dumps({"records": records, "seconds": seconds, "rate": records / seconds}))
    os._exit(0)  # measured; an orderly end would only add to the run's time


def batch(role: Role) -> None:
    app = faust_compat.create_app(settings_of(role), role["agent"])

    @faust_compat.batch_agent(app, role["topic"])
    async def count(batches: AsyncIterator[RecordBatch]) -> None:
        seen, started = 0, 0.0
        async for records in batches:
            started = started or time.perf_counter()
            seen += len(records.records)
            records.ack()
            if seen >= role["records"]:
                report(role, seen, time.perf_counter() - started)

    faust_compat.run(app)


def bare(role: Role) -> None:
    import faust

    app = faust.App(f"{role['prefix']}-{role['agent']}", broker=f"kafka://{role['servers']}", web_enabled=False,
                    topic_allow_declare=False, topic_disable_leader=True, datadir=Path(role["home"]) / "bare")

    @app.agent(app.topic(role["topic"], value_serializer="raw", key_serializer="raw"))  # type: ignore[untyped-decorator]
    async def count(stream: Any) -> None:
        seen, started = 0, 0.0
        async for _ in stream:
            started = started or time.perf_counter()
            seen += 1
            if seen >= role["records"]:
                report(role, seen, time.perf_counter() - started)

    faust.Worker(app, quiet=True, override_logging=False, redirect_stdouts=False).execute_from_commandline()


def measure(role: Role) -> dict[str, float]:
    subprocess.run([sys.executable, __file__, "--role", json.dumps(role)], check=False, timeout=300,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    result = Path(role["result"])
    if not result.exists():
        raise SystemExit(f"the {role['agent']} agent ended without a result; run it alone to see why: --role "
                         f"'{json.dumps(role)}'")
    measured: dict[str, float] = json.loads(result.read_text())
    result.unlink()
    return measured


async def fill(settings: Settings, topic: str, records: int, value_bytes: int, partitions: int) -> float:
    """Seconds until the broker has acknowledged all records."""
    producer = producing.create_producer(settings)
    await producer.start()
    try:
        rows: list[producing.Message] = [(b"tenant/user-%d" % index, os.urandom(value_bytes), ())
                                         for index in range(records // partitions)]
        started = time.perf_counter()
        await producing.send_batches(producer, topic, dict.fromkeys(range(partitions), rows))
        return time.perf_counter() - started
    finally:
        await producer.stop()


async def recovery(settings: Settings, topic: str, home: Path) -> changelog.Recovered:
    identity = Identity(topic_id="benchmark", delete_retention_ms=86_400_000, now_ms=int(time.time() * 1000))
    store = PartitionStore.open(home / "store", identity)
    try:
        return await changelog.recover(store, topic, 0, settings)
    finally:
        store.drop()


def main() -> None:
    from kafka.admin import KafkaAdminClient, NewTopic

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", default="127.0.0.1:9092")
    parser.add_argument("--records", type=int, default=400_000, help="read by the batch agent")
    parser.add_argument("--bare-records", type=int, default=20_000, help="read by the bare agent")
    parser.add_argument("--state-records", type=int, default=100_000)
    parser.add_argument("--role", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        role = json.loads(arguments.role)
        {"bare": bare, "batch": batch}[role["agent"]](role)
        return
    with tempfile.TemporaryDirectory() as folder:
        prefix = f"bench-{uuid.uuid4().hex[:8]}"
        shared: Role = {"servers": arguments.servers, "prefix": prefix, "home": folder, "topic": f"{prefix}.events",
                        "result": f"{folder}/result.json"}
        settings = settings_of(shared)
        admin = KafkaAdminClient(bootstrap_servers=arguments.servers)
        names = [shared["topic"], f"{prefix}.state"]
        admin.create_topics([NewTopic(names[0], PARTITIONS, 1), NewTopic(names[1], 1, 1)])
        try:
            asyncio.run(fill(settings, names[0], arguments.records, EVENT_BYTES, PARTITIONS))
            slow = measure(shared | {"agent": "bare", "records": arguments.bare_records})
            fast = measure(shared | {"agent": "batch", "records": arguments.records})
            sent_s = asyncio.run(fill(settings, names[1], arguments.state_records, STATE_BYTES, 1))
            rebuilt = asyncio.run(recovery(settings, names[1], Path(folder)))
        finally:
            admin.delete_topics(names)
            admin.close()
    print(json.dumps({
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version()}, "event_bytes": EVENT_BYTES,
        "bare_agent": slow, "batch_agent": fast, "ratio": round(fast["rate"] / slow["rate"], 1),
        "state_sent_per_s": round(arguments.state_records / sent_s),
        "state_recovered_per_s": round(rebuilt.records / rebuilt.seconds), "state_bytes": STATE_BYTES,
    }, indent=2))


if __name__ == "__main__":
    main()
