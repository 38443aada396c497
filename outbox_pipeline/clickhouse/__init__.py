"""The ClickHouse store: the event log table, loading a batch into it, and what it can prove about one.

The only room that knows clickhouse-connect. Statements carry their values as server-side parameters.
"""
