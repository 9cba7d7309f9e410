"""The read API: who is this user, what to show them, and why. A replica: it reads what workers write."""
