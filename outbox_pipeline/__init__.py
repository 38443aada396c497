"""Publish events in your own PostgreSQL transaction; find each of them in ClickHouse exactly once."""
