"""Who sees which arm, and what an experiment has shown."""
