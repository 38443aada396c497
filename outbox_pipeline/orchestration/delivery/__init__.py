"""The delivery of batches in Dagster: the sensor that asks for runs, the asset `event_log`, and the steps of a run."""
