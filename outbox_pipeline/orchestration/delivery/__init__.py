"""The delivery of batches in Dagster: `outbox_sensor` asks for runs of the asset `event_log`, which go through `steps`.

How a run gets its delivery is in `run`, what its steps show in `report`.
"""
