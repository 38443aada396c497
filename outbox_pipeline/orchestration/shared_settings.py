"""Whether a run goes by the same settings as the process that asked for it: code location, container or worker.

Each reads its own environment, and a code server that outlives its end answers ticks with the old settings. So a
digest of the settings that both must share travels with the run as a tag. Invariant: a difference stops nothing, since
either side is right for itself.
"""

import dagster as dg

from outbox_pipeline.monitoring.shared_settings import other_settings, settings_digest
from outbox_pipeline.settings import Settings

#: The digest, on each run.
SETTINGS_TAG = "outbox/settings"


def settings_tag(settings: Settings) -> dict[str, str]:
    """Return the tag that says by which settings a run was asked for."""
    return {SETTINGS_TAG: settings_digest(settings)}


def tell_other_settings(run: dg.DagsterRun, settings: Settings, to: dg.DagsterLogManager) -> None:
    """Warn in one sentence when the run was asked for by a process with other settings.

    Not of a run that is executed again, whose tags are those of the run before, maybe of before a new deployment.
    """
    digest = run.tags.get(SETTINGS_TAG)
    others = [] if digest is None or run.parent_run_id else other_settings(digest, settings)
    if others == []:
        return
    which = "of another version of outbox-pipeline" if others is None else f"of {', '.join(others)}"
    to.warning(
        f"This run goes by its own settings, and what asked for it had other values {which}: give code location and "
        "runs the same environment, and end what is left of a code server that was started earlier."
    )
