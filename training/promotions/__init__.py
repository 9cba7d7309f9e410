"""What offers and messages are worth, from logs that were drawn by lot."""
