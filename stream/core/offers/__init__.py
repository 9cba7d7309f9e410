"""Which offer is shown to whom: what may be, what is chosen by lot, and what is learned of it."""
