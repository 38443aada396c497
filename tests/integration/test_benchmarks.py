"""The measurements work, and one that measured a delivery that did not happen fails."""

import json
import os
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

from benchmarks import common
from benchmarks.contenders import NATIVE_GRANTS, create_tables
from benchmarks.side_by_side import contenders, run_round, summarise
from benchmarks.stages import watched_stages
from outbox_pipeline.relay.loop import relay
from outbox_pipeline.stores import Stores


@pytest.mark.embedded_only  # ClickHouse reads from PostgreSQL's socket
def test_everybody_delivers_every_event_of_a_round() -> None:
    """Each contender's rows are compared with ours, so a figure stands for events that have arrived."""
    with patch.dict(os.environ), common.fresh_stores(more_grants=NATIVE_GRANTS) as stores:
        create_tables(stores)
        everybody = {name: one for name, one in contenders(40).items() if not name.startswith("dlt_")}

        rates = run_round(stores, everybody, events=100, first=1)

    figures = summarise(everybody, [rates])
    assert set(figures) == {"ours", "native", "frames", "loop"}
    assert all(figure["events_per_second"] > 0 for figure in figures.values())
    assert figures["ours"]["ours_ratio"] == 1


def test_a_contender_that_delivers_nothing_has_no_figure(stores: Stores) -> None:
    """Speed without rows is refused."""
    create_tables(stores)
    everybody = {name: one for name, one in contenders(40).items() if name in {"ours", "loop"}}
    everybody["loop"] = replace(everybody["loop"], deliver=lambda *_: {"loop": 0.001})

    with pytest.raises(RuntimeError, match="loop_log did not deliver every event"):
        run_round(stores, everybody, events=100, first=0)


def test_every_stage_of_a_relay_is_timed(stores: Stores) -> None:
    """However the loop runs them, the stages and the parts of the load are all found."""
    common.publish(stores.engine, 50)

    with watched_stages() as stages:
        relay(stores, until_empty=True)

    assert list(stages.seconds) == ["cut", "request", "lease", "extract", "validate", "load", "mark"]
    assert {"sending", "sent", "proven"} <= set(stages.parts["load"])
    assert common.count_delivered(stores, after=0, until=50) == 50


def test_a_quick_look_leaves_the_quoted_figures_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures go where `BENCHMARK_RESULTS` says, as `python -m benchmarks --quick` sets it."""
    monkeypatch.setenv(common.RESULTS_VARIABLE, str(tmp_path / "aside"))
    kept = sorted(common.RESULTS.glob("*"))

    common.save("quick", {"events": 1})

    assert json.loads((tmp_path / "aside" / "quick.json").read_text())["figures"] == {"events": 1}
    assert sorted(common.RESULTS.glob("*")) == kept
