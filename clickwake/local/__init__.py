"""Clickwake on one machine: broker, ClickHouse and every process under one supervisor."""
