"""Alerts, reminders and segment changes to people's tools: which of them go out, when, to whom, and what came of it."""
