"""Whether a process still does its work: lag, memory, metrics, and who ends one that is stuck."""
