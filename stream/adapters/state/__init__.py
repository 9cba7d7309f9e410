"""States on disk, and the changelog they come back from."""
