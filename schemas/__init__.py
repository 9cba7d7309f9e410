"""What travels: frozen structs without I/O. Everything else may import this; this imports nothing of ours."""
