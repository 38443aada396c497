"""What is done with an outbox beside delivering it: comparing, proving again, resuming, pruning, adopting, quarantine.

A module here is one procedure: it takes its connections, works in bounded steps and returns counts. It may use the
stores and the relay, and knows neither Dagster nor an argument parser.
"""
