"""Forgetting a user everywhere: the protocol, what it does in ClickHouse, and the search that shows nothing is left."""
