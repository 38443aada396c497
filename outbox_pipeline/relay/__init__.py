"""The relay: moving batches from the outbox to ClickHouse.

Cut positions into batches, hand due batches to runs, deliver one batch step by step. Plain functions and one class;
Dagster and the command line are thin callers of what stands here.
"""
