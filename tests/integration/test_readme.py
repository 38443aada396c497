"""The README's snippet and operating.md's query, run as a reader would run them."""

import os
import re
import subprocess
import sys
from pathlib import Path

from sqlalchemy import Engine, text

ROOT = Path(__file__).parents[2]


def test_the_readme_snippet_publishes_an_event(outbox_engine: Engine, postgres_url: str, tmp_path: Path) -> None:
    """Copied into a file and run, it stores a user and the event that says so."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    snippet = re.search(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert snippet is not None
    script = tmp_path / "snippet.py"
    script.write_text(snippet[1], encoding="utf-8")
    environment = {**os.environ, "OUTBOX_POSTGRES_URL": postgres_url, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script)]
    printed = subprocess.run(command, env=environment, check=True, timeout=60, capture_output=True, text=True).stdout

    with outbox_engine.begin() as connection:
        user = connection.execute(text("SELECT id, email FROM users")).one()
        event = connection.execute(
            text("SELECT event_id, event_type, metadata_version, event_context FROM outbox.event")
        ).one()

    assert printed == f"{event.event_id}\n"
    assert (event.event_type, event.metadata_version) == ("user_created", 1)
    assert event.event_context == {"user_id": user.id, "email": user.email}


def test_the_status_query_of_the_docs_runs(outbox_engine: Engine) -> None:
    """What operating.md asks of `outbox.event_status` is there to ask."""
    page = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    query = re.search(r"^```sql\n(SELECT [^`]*? FROM outbox\.event_status;\n)```$", page, re.MULTILINE)
    assert query is not None
    with outbox_engine.begin() as connection:
        assert connection.execute(text(query[1])).all() == []
