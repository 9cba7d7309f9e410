"""Conditions and numbers as people write them, and when time alone turns one."""
