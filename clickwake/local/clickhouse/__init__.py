"""The ClickHouse engine as a library (chdb) behind a loopback server that speaks ClickHouse's HTTP interface."""
