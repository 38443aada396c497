"""Runs on Celery workers, with a broker of their own, and what goes wrong there; `make test-celery`."""
