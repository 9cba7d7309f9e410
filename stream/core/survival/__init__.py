"""What silence foretells: who stays away, and when a purchase is due again."""
