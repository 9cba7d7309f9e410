"""What the sink counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

RECORDS = Counter("clickwake_sink_records", "Records read, by topic and what became of them", ["topic", "outcome"])
ROWS = Counter("clickwake_sink_rows", "Rows ClickHouse acknowledged, by table (a replay counts again)", ["table"])
REJECTED = Counter("clickwake_sink_rejected", "Records sent to the dead letters", ["topic"])
LOST_LETTERS = Counter("clickwake_sink_letters_refused", "Letters about a refused letter: logged, not written again")
RETRIES = Counter("clickwake_sink_retries", "Inserts tried again, by error", ["error"])
BLOCKED = Gauge("clickwake_sink_blocked", "1 while ClickHouse does not take the current batch")
COMMIT_FAILURES = Counter("clickwake_sink_commit_failures", "Commits that failed after the rows were stored (harmless)")
BATCH_ROWS = Histogram("clickwake_sink_batch_records", "Records in a batch",
                       buckets=(1, 10, 100, 1_000, 5_000, 10_000, 20_000))
INSERT_SECONDS = Histogram("clickwake_sink_insert_seconds", "One INSERT, by table", ["table"])
DELAY_SECONDS = Histogram("clickwake_sink_delay_seconds", "From the append time of a batch's oldest record to its row",
                          buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600))
LAG = Gauge("clickwake_sink_lag", "Records between the committed offset and the end", ["topic", "partition"])
