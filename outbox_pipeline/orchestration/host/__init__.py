"""What runs Dagster's processes and keeps its own records small; nothing here defines a job, a sensor or an asset."""
