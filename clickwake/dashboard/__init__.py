"""The dashboard: what happens, who is in which segment, what was said and what came of it, for people who do not write SQL.

Everything is asked of ClickHouse's views and of the read API; the dashboard itself keeps nothing.
"""
