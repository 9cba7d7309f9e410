"""What is learned from: events folded as serving folds them, and what the sink stored of serving."""
