"""Tests on Dagster's real processes, started once for all of them."""
