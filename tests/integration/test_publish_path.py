"""What a reader opens to follow one published event, as docs/architecture.md lists it."""

import json
import re
import subprocess
import sys
from pathlib import Path

from sqlalchemy import Engine

import outbox_pipeline

ROOT = Path(__file__).parents[2]

#: Publishes two events as an application does and prints for each the files of this package that were entered, and the
#: `.sql` files that were sent.
_PROGRAM = """
import json, sys
from sqlalchemy import create_engine, event
from sqlalchemy.orm import Session
from outbox_pipeline import publish_event
from outbox_pipeline.postgres.queries import query_text
from outbox_pipeline.publish.parameters import pyformat

url, package, *names = sys.argv[1:]
engine = create_engine(url)
files = {pyformat(query_text(name)): f"postgres/queries/{name}.sql" for name in names}
query_text.cache_clear()
opened = set()


@event.listens_for(engine, "before_cursor_execute")
def on_statement(connection, cursor, statement, *rest):
    opened.add(files.get(statement, statement))


def on_event(frame, what, argument):
    is_called = what == "call" and frame.f_code.co_name != "<module>"
    if is_called and frame.f_code.co_filename.startswith(package):
        opened.add(frame.f_code.co_filename.removeprefix(package))


found = []
with Session(engine) as session, session.begin():
    for n in range(2):
        opened.clear()
        sys.setprofile(on_event)
        publish_event(session, {"n": n}, event_type="counted")
        sys.setprofile(None)
        found.append(sorted(opened))
print(json.dumps(found))
"""


def listed() -> list[str]:
    """Return the files in the page's table."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.partition("## What a published event passes through\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| \[`([\w/.]+)`\]", section, re.MULTILINE)


def opened(engine: Engine) -> list[set[str]]:
    """Return the files that the first and a later event of a process pass through."""
    package = f"{Path(outbox_pipeline.__file__).parent}/"
    names = [path.stem for path in (Path(package) / "postgres" / "queries").glob("*.sql")]
    url = engine.url.render_as_string(hide_password=False)
    said = subprocess.run(
        [sys.executable, "-c", _PROGRAM, url, package, *names], capture_output=True, text=True, check=True
    )
    return [set(files) for files in json.loads(said.stdout)]


def test_an_event_passes_through_ten_files_at_most(outbox_engine: Engine) -> None:
    """The page names each file that publishing on a Session enters, and they are few enough to be read at once."""
    first, later = opened(outbox_engine)

    assert sorted(listed()) == sorted(later)
    assert len(later) <= 10
    assert first - later == {"settings.py", "secret_files.py", "server_urls.py", "postgres/queries/__init__.py"}
