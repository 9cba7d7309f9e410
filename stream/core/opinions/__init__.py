"""What people think of items and brands, when it changes, and how satisfied they would be."""
