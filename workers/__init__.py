"""What runs: one file a process."""
