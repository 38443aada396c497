"""Real engines for one machine, from pip wheels: PostgreSQL, and ClickHouse behind a small local HTTP server.

Nothing here is needed in production. The pipeline knows only URLs, and `embedded_engines` yields some.
Engines listen on a Unix socket and on loopback without passwords, so they are for one user's machine.
"""
