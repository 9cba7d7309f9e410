"""Traces of single events, from the HTTP call to the row. Off unless `tracing.endpoint` is set: see docs/tracing.md."""
