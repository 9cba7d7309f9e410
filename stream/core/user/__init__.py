"""What is kept of one user, and how an event changes it."""
