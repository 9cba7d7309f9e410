"""Satisfaction read from texts, and predicted by user, item and strategy."""
