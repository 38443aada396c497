"""What the embedded ClickHouse engine may do: written as its configuration before it opens its data.

Its one user has the grants below and no other, so a table function or an engine that reaches files, other servers or
programs is refused by ClickHouse itself. Settings through which statements would reach files all the same cannot be
changed. The bodies of inserts are read through the view `_outbox.upload`, which takes the id of an upload and no path.
"""

import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

#: Name of the view that reads a received body, as `upload(id='…', format='…', structure='…')`.
UPLOAD_VIEW = "_outbox.upload"

#: The configuration's file; a path in the engine's connection string could not hold every character.
CONFIGURATION_FILE = "engine.xml"

_GRANTS = (
    "GRANT SHOW, SELECT, INSERT, ALTER TABLE, ALTER VIEW, CREATE DATABASE, CREATE TABLE, CREATE VIEW,"
    " CREATE TEMPORARY TABLE, DROP DATABASE, DROP TABLE, DROP VIEW, TRUNCATE, OPTIMIZE, CHECK, KILL QUERY ON *.*",
    "REVOKE INSERT, ALTER, CREATE TABLE, CREATE VIEW, DROP DATABASE, DROP TABLE, DROP VIEW, TRUNCATE, OPTIMIZE"
    " ON _outbox.*",
    # The database chDB starts in shows the file system as tables.
    "REVOKE ALL ON _start.*",
    # Without it no connection could be opened any more.
    "REVOKE DROP DATABASE ON default.*",
)

#: Settings that name a file or a server, choose another language, hold SQL, or turn on what runs text.
_LOCKED_SETTINGS = (
    "additional_result_filter",
    "additional_table_filters",
    "allow_experimental_eval_table_function",
    "allow_python_table_function",
    "dialect",
    "format_avro_schema_registry_url",
    "format_schema",
    "format_template_resultset",
    "format_template_row",
    "input_format_record_errors_file_path",
    "merge_tree_disk",
    "merge_tree_storage_policy",
    "stream_like_engine_allow_direct_select",
)

_ENGINE = """<clickhouse>
  <user_directories><users_xml><path>users.xml</path></users_xml></user_directories>
  <default_database>_start</default_database>
</clickhouse>
"""

_USERS = """<clickhouse>
  <profiles><default>
    <allow_python_table_function>0</allow_python_table_function>
    <constraints>{constraints}</constraints>
  </default></profiles>
  <quotas><default/></quotas>
  <users><default>
    <password/>
    <networks><ip>::/0</ip></networks>
    <profile>default</profile>
    <quota>default</quota>
    <grants>{grants}</grants>
  </default></users>
</clickhouse>
"""

_UPLOAD_DATABASE = "6f757462-6f78-4000-8000-000000000001"
_UPLOAD_TABLE = "6f757462-6f78-4000-8000-000000000002"
_ATTACH_DATABASE = "ATTACH DATABASE _ UUID '{id}'\nENGINE = Atomic\n"

# SQL SECURITY NONE: who reads the view need not have the right to read files.
_UPLOAD = """ATTACH VIEW _ UUID '{id}'
SQL SECURITY NONE
AS SELECT * FROM file(concat({folder}, '/', toString({{id:UUID}})), {{format:String}}, {{structure:String}}, 'none')
"""


def write_configuration(data: Path, *, uploads: Path, more_grants: Sequence[str] = ()) -> Path:
    """Write what an engine on *data* is configured with, and return the folder of CONFIGURATION_FILE.

    *uploads* is the folder whose files `UPLOAD_VIEW` reads; *more_grants* are rights beside the usual ones, such as
    `READ ON POSTGRES`. An older data directory keeps what it holds.
    """
    _write_databases(data, uploads)
    folder = data / "configuration"
    folder.mkdir(exist_ok=True)
    # What chDB made there while it was loaded, for a server that was killed.
    for leftover in filter(Path.is_dir, folder.iterdir()):
        shutil.rmtree(leftover, ignore_errors=True)
    grants = [*_GRANTS, *(f"GRANT {right}" for right in more_grants)]
    (folder / CONFIGURATION_FILE).write_text(_ENGINE)
    (folder / "users.xml").write_text(
        _USERS.format(
            constraints="".join(f"<{name}><readonly/></{name}>" for name in _LOCKED_SETTINGS),
            grants="".join(f"<query>{escape(grant)}</query>" for grant in grants),
        )
    )
    return folder


def _write_databases(data: Path, uploads: Path) -> None:
    metadata = data / "metadata"
    metadata.mkdir(parents=True, exist_ok=True)
    _write_default(metadata)
    (metadata / "_outbox.sql").write_text(_ATTACH_DATABASE.format(id=_UPLOAD_DATABASE))
    tables = data / "store" / _UPLOAD_DATABASE[:3] / _UPLOAD_DATABASE
    tables.mkdir(parents=True, exist_ok=True)
    folder = quoted(str(uploads))
    (tables / "upload.sql").write_text(_UPLOAD.format(id=_UPLOAD_TABLE, folder=folder))


def _write_default(metadata: Path) -> None:
    """Make `default` a database of its own; chDB would lay one that shows the file system over its tables."""
    file, link = metadata / "default.sql", metadata / "default"
    # The link leads to the tables of an older data directory. With it in place chDB would open them a second time,
    # for the database it starts in; ClickHouse itself makes it again.
    name = link.readlink().name if link.is_symlink() else str(uuid.uuid4())
    if not file.exists():
        # Half a file would stop every later start.
        draft = metadata / "default.new"
        draft.write_text(_ATTACH_DATABASE.format(id=uuid.UUID(name)))
        draft.replace(file)
    if link.is_symlink():
        link.unlink()


def quoted(text: str) -> str:
    """Return *text* as an SQL string, for where the engine takes no parameter: SET and names of files."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
