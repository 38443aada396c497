"""The columns of the outbox schema as SQLAlchemy Core tables: the only place in Python that names them.

The numbered `.sql` migrations create the tables; a test compares both. Nothing here imports a driver, so applications
that only publish can.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Computed,
    Date,
    DateTime,
    Identity,
    Integer,
    MetaData,
    Table,
    Text,
    Uuid,
)
from sqlalchemy.dialects.postgresql import ARRAY, INT8MULTIRANGE, INTERVAL, JSON, JSONB, OID

SCHEMA = "outbox"
metadata = MetaData(schema=SCHEMA)

event = Table(
    "event",
    metadata,
    Column("position", BigInteger, Identity(always=True), primary_key=True),
    Column("event_id", Uuid, nullable=False, unique=True),
    Column("event_type", Text, nullable=False),
    Column("event_date_time", DateTime(timezone=True), nullable=False),
    Column("environment", Text, nullable=False),
    Column("event_context", JSON, nullable=False),
    Column("metadata_version", BigInteger, nullable=False),
    Column("recorded_at", DateTime(timezone=True), nullable=False),
    Column("trace_context", Text),
    Column("context_bytes", Integer, Computed("octet_length(event_context::text)"), nullable=False),
    Column("published_by", Text),
)

unclaimed = Table(
    "unclaimed",
    metadata,
    Column("is_only_row", Boolean, primary_key=True),
    Column("positions", INT8MULTIRANGE, nullable=False),
    Column("system_identifier", BigInteger, nullable=False),
    Column("database_oid", OID, nullable=False),
    Column("timeline", Integer, nullable=False),
    Column("ledger_id", Uuid, nullable=False),
    Column("last_cut_number", BigInteger, nullable=False),
    Column("witness_floor", BigInteger, nullable=False),
    Column("begun_on", Date),
)

gap = Table(
    "gap",
    metadata,
    Column("gap_id", BigInteger, Identity(always=True), primary_key=True),
    Column("positions", INT8MULTIRANGE, nullable=False),
    Column("holders", ARRAY(Text), nullable=False),
    Column("observed_at", DateTime(timezone=True), nullable=False),
)

batch = Table(
    "batch",
    metadata,
    Column("batch_id", Uuid, primary_key=True),
    Column("positions", INT8MULTIRANGE, nullable=False),
    Column("first_position", BigInteger, nullable=False),
    Column("last_position", BigInteger, nullable=False),
    Column("recorded_on", Date, nullable=False),
    Column("event_count", Integer, nullable=False),
    Column("context_bytes", BigInteger, nullable=False),
    Column("oldest_recorded_at", DateTime(timezone=True), nullable=False),
    Column("status", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("holder", Text),
    Column("lease_until", DateTime(timezone=True)),
    Column("next_attempt_at", DateTime(timezone=True)),
    Column("run_id", Text),
    Column("rejected", JSONB(none_as_null=True)),
    Column("proof", JSONB(none_as_null=True)),
    Column("accepted_count", Integer),
    Column("rejected_count", Integer),
    Column("last_error", Text),
    Column("last_error_kind", Text),
    Column("cut_at", DateTime(timezone=True), nullable=False),
    Column("requested_at", DateTime(timezone=True)),
    Column("started_at", DateTime(timezone=True)),
    Column("failed_at", DateTime(timezone=True)),
    Column("processed_at", DateTime(timezone=True)),
    Column("foreign_positions", INT8MULTIRANGE, nullable=False),
    Column("transient_failures", Integer, nullable=False),
    Column("proved_at", DateTime(timezone=True)),
    Column("pruned_at", DateTime(timezone=True)),
    Column("lasting", INTERVAL),
    Column("cut_number", BigInteger),
    Column("answered_generation", Integer),
    Column("may_resend", Boolean, nullable=False),
    Column("trouble_since", DateTime(timezone=True)),
    Column("memory_failures", Integer, nullable=False),
    Column("refused_generations", Integer, nullable=False),
    Column("former_positions", INT8MULTIRANGE),
    Column("split_at", DateTime(timezone=True)),
)

quarantined_event = Table(
    "quarantined_event",
    metadata,
    Column("quarantine_id", BigInteger, Identity(always=True), primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("event_id", Uuid, nullable=False),
    Column("event_type", Text, nullable=False),
    Column("batch_id", Uuid, nullable=False),
    Column("reasons", ARRAY(Text), nullable=False),
    Column("status", Text, nullable=False),
    Column("quarantined_at", DateTime(timezone=True), nullable=False),
    Column("resolved_at", DateTime(timezone=True)),
    Column("note", Text),
    Column("pruned_at", DateTime(timezone=True)),
    Column("replaced_by", Uuid),
)

watermark = Table(
    "watermark",
    metadata,
    Column("is_only_row", Boolean, primary_key=True),
    Column("observed_at", DateTime(timezone=True), nullable=False),
    Column("holders", JSONB, nullable=False),
)

delivered_elsewhere = Table(
    "delivered_elsewhere",
    metadata,
    Column("event_id", Uuid, primary_key=True),
    Column("batch_id", Uuid, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("adopted_at", DateTime(timezone=True), nullable=False),
)

log_move = Table(
    "log_move",
    metadata,
    Column("is_only_row", Boolean, primary_key=True),
    Column("run", BigInteger, nullable=False),
    Column("exchange_at", DateTime(timezone=True)),
)
