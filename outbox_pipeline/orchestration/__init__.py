"""Dagster: definitions, ops, sensors and the instance.

The only room that knows Dagster, and it decides nothing: each op, sensor and job calls a procedure and shows what it
returned.
"""
