"""The text encoder: exported, adapted to a catalog, in eight bits, and the vectors of items."""
