"""What numbers can bear: Bayesian linear models, intervals that hold at any time, change points, drift."""
