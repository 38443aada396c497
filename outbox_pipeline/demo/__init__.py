"""A small shop to show the pipeline at work: it writes orders and events together, and checks afterwards what arrived.

Nothing here delivers; Dagster does that meanwhile, as it would for any application.
"""
