"""Real engines for one machine, from pip wheels: PostgreSQL, and ClickHouse behind a small local HTTP server.

Nothing here is needed in production. The pipeline knows only URLs, and `embedded_engines` yields some: it is what an
application's integration tests start. It is imported on first use, because each engine's own process loads this too.
PostgreSQL listens on a Unix socket without passwords, in a folder closed to other accounts; ClickHouse on loopback, for
requests that show the home's token. So they are for one user's machine.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outbox_pipeline.embedded.engines import EngineUrls, embedded_engines

__all__ = ["EngineUrls", "embedded_engines"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from outbox_pipeline.embedded import engines

    return getattr(engines, name)
