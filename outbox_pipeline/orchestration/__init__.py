"""Dagster: a module for each topic with its ops, job, sensor or schedule, and check; a folder where it is larger.

`delivery`, `health`, `alerts`, `quarantine`, `reconcile`, `retention`, `completeness`, `recheck` and `parked` are the
topics, `host` runs Dagster's processes, and what topics share stands beside them. The only room that knows Dagster, and
it decides nothing: each op, sensor and job calls a procedure and shows what it returned.
"""
