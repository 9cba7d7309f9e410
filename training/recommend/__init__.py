"""What ranks: the user encoder, item-to-item links, their mixture, and how well it recommends."""
