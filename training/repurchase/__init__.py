"""What is bought again, and when; what completes a basket; against the rules a shop would use."""
