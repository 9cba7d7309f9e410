"""Which items for whom: live counts, links, their mixture, rules, and why an item is shown or is not."""
