"""ClickHouse: one way to reach it, and what is read back from there."""
