"""Which bundle runs: announced, judged against the current one, watched, rolled back."""
