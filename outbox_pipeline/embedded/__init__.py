"""Real engines for one machine, from pip wheels: PostgreSQL, and ClickHouse behind a small local HTTP server.

Nothing here is needed in production. The pipeline knows only URLs, and `embedded_engines` yields some.
PostgreSQL listens on a Unix socket without passwords, in a folder closed to other accounts; ClickHouse on loopback, for
requests that show the home's token. So they are for one user's machine.
"""
