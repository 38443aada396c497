"""Restores and failovers rehearsed on servers of PostgreSQL 15, as docs/restore.md tells them; `make test-failover`."""
