"""Looking at a running pipeline: its state, one event's life, and whether everything is set up right.

Nothing here changes anything on either side; Dagster and the command line show what these functions return.
"""
