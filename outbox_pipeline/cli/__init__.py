"""The command line: thin callers of the procedures, a module a command, with its name.

Results go to stdout, messages to stderr; the exit code is 0 when it worked, 1 when it failed, 2 for wrong use. Modules
here import nothing heavy at their top, so that `outbox --help` answers at once.
"""
