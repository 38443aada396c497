"""The pipeline's resource: connections to both stores, and a place for the delivery of this process.

Opened on first use and closed at the end of the run or tick. Invariant: which servers these are is said by the
environment of the code location alone; nothing in a run's config chooses one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import dagster as dg
from pydantic import PrivateAttr
from sqlalchemy import Engine

from outbox_pipeline.clickhouse.client import EventLogClient, open_client
from outbox_pipeline.errors import ConfigurationError
from outbox_pipeline.logs import configure_logs
from outbox_pipeline.orchestration.run_limits import require_limit
from outbox_pipeline.orchestration.run_tags import tags_of_this_process
from outbox_pipeline.orchestration.shared_settings import tell_other_settings
from outbox_pipeline.postgres.engine import create_outbox_engine
from outbox_pipeline.relay.delivery import Delivery
from outbox_pipeline.settings import Settings, load_settings
from outbox_pipeline.stores import Stores


class PipelineResource(dg.ConfigurableResource):  # type: ignore[type-arg]  # Dagster's own usage leaves it open
    """Both stores, by OUTBOX_POSTGRES_URL and OUTBOX_CLICKHOUSE_URL. At most one delivery is open in a process."""

    # A field here would be one of every run's config: a run could be started that sends the events elsewhere.
    _engine: Engine | None = PrivateAttr(None)
    _client: EventLogClient | None = PrivateAttr(None)
    _delivery: Delivery | None = PrivateAttr(None)

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator["PipelineResource"]:
        """Close what was opened when the run or tick ends; a lease not ended by then runs out."""
        configure_logs(load_settings())
        if context.run is not None and context.instance is not None and context.log is not None:
            require_limit(context.instance, context.run)
            _tell_worker(context.instance, context.run)
            tell_other_settings(context.run, self.settings, context.log)
        try:
            yield self
        finally:
            self.close()

    def close(self) -> None:
        """Stop the heartbeat and close both connections."""
        if self._delivery is not None:
            self._delivery.close()
        if self._client is not None:
            self._client.close()
        if self._engine is not None:
            self._engine.dispose()
        self._delivery = self._client = self._engine = None

    @property
    def settings(self) -> Settings:
        """The settings of the environment."""
        return load_settings()

    @property
    def engine(self) -> Engine:
        """The outbox database."""
        if self._engine is None:
            self._engine = create_outbox_engine(self.settings)
        return self._engine

    @property
    def stores(self) -> Stores:
        """Both stores, open."""
        if self._client is None:
            self._client = open_client(self.settings)
        return Stores(self.engine, self._client, self.settings)

    @property
    def delivery(self) -> Delivery | None:
        """The delivery that an earlier step of this process has started."""
        return self._delivery

    def keep(self, delivery: Delivery) -> Delivery:
        """Keep *delivery* for the steps that follow, and close it when the run ends."""
        self._delivery = delivery
        return delivery

    @staticmethod
    def as_uuid(text: str) -> UUID:
        """Return a batch id from run config; ConfigurationError, which does not quote it, when it is none."""
        try:
            return UUID(text)
        except ValueError:
            raise ConfigurationError(
                "The batch_id in the run config is no UUID: take it from the tag outbox/batch_id of a run."
            ) from None


def _tell_worker(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Tag the run with the worker that does it, where it is one of Celery's."""
    tags = tags_of_this_process()
    if tags:
        instance.add_run_tags(run.run_id, tags)


class NothingKept(dg.IOManager):
    """The place for what ops hand each other, which is nothing.

    Dagster's own writes to a folder that a run's config may choose.
    """

    def handle_output(self, context: dg.OutputContext, obj: object) -> None:
        """Refuse: an op that hands something on would need a disk that all processes share."""
        raise NotImplementedError(f"Op output {context.name} is kept nowhere: ops ask the ledger.")

    def load_input(self, context: dg.InputContext) -> object:
        """Refuse: nothing was kept."""
        raise NotImplementedError(f"Op input {context.name} was kept nowhere: ops ask the ledger.")


@dg.io_manager(config_schema={}, description="Keeps nothing: ops hand each other nothing and ask the ledger.")
def nothing_kept() -> NothingKept:
    """Make the place where nothing is kept; no run can configure it."""
    return NothingKept()
