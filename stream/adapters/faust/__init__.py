"""Faust, as Clickwake uses it: batches of raw records, acknowledged by us."""
