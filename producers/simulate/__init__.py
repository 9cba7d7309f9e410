"""A shop with planted truth: what it recommends and alerts on can be checked against what was really so."""
