"""Runs as Jobs on a stand-in for the API of Kubernetes: see `tests/fixtures/kubernetes_api.py`."""
