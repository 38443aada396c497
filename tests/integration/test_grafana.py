"""The Grafana dashboard, the alert rules and the docs speak of metrics that are exposed, and of all of them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from outbox_pipeline.monitoring.metrics import metrics_text
from outbox_pipeline.stores import Stores
from tests.fixtures.pages import COMMANDS
from tests.fixtures.snapshots import delivered_batches

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy" / "grafana"
RULES = [rule for group in yaml.safe_load((GRAFANA / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((GRAFANA / "dashboard.json").read_text())
EXPRESSIONS = [rule["expr"] for rule in RULES] + [
    target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]
]
#: Labels that Prometheus puts on what it scrapes.
SCRAPED = {"job", "instance"}


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    """Parse an expression, which may have Grafana's variables in it, and return what it selects."""
    found: list[promql_parser.VectorSelector] = []

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


@pytest.fixture
def exposed(stores: Stores) -> dict[str, dict[str, set[str]]]:
    """Every sample's name with its labels and their values, of an outbox that has delivered something."""
    delivered_batches(stores, (3,))
    samples: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(metrics_text(stores.settings)[0]):
        samples.setdefault(family.name + ("_total" if family.type == "counter" else ""), {})
        for sample in family.samples:
            for label, value in sample.labels.items():
                samples[sample.name].setdefault(label, set()).add(value)
    return samples


def test_every_metric_used_is_exposed(exposed: dict[str, dict[str, set[str]]]) -> None:
    """Rules and panels select names that exist, by labels and values that exist."""
    for expression in EXPRESSIONS:
        for selector in selectors(expression):
            assert selector.name in exposed, expression
            for matcher in selector.matchers.matchers:
                if matcher.name not in SCRAPED:
                    assert matcher.value in exposed[selector.name][matcher.name], expression


def test_every_metric_is_shown_and_documented(exposed: dict[str, dict[str, set[str]]]) -> None:
    """The dashboard leaves none out, and the table in operating.md is the list of them."""
    text = (ROOT / "docs" / "operating.md").read_text().partition("## Metrics\n")[2]
    documented = re.findall(r"^\| `(outbox_\w+)(?:\{[^`]*\})?` \|", text, re.MULTILINE)
    shown = {selector.name for expression in EXPRESSIONS for selector in selectors(expression)}

    assert sorted(documented) == sorted(exposed)
    assert shown == set(exposed) - {"outbox_last_hour_batches"}


def test_metric_names_follow_the_conventions(exposed: dict[str, dict[str, set[str]]]) -> None:
    """Prefix, base units, `_total` on counters and nowhere else; labels with few values."""
    assert all(re.fullmatch(r"outbox_[a-z_]+", name) for name in exposed)
    assert not [name for name in exposed if re.search(r"_(ms|minutes|hours|milliseconds|kb)$", name)]
    assert {label for labels in exposed.values() for label in labels} <= {"status", "kind", "quantile"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    """Each has a severity, a sentence of what is wrong and one of what to do, in one line each."""
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert all(rule["annotations"][name].endswith(".") for name in ("summary", "description"))
    assert all("\n" not in sentence for sentence in rule["annotations"].values())
    assert promql_parser.parse_duration(rule.get("for", "1s")).total_seconds() > 0


def commands() -> Iterator[str]:
    """Yield each command the annotations name."""
    for rule in RULES:
        yield from re.findall(r"'outbox ([a-z]+)", rule["annotations"]["description"])


def test_commands_in_alerts_exist() -> None:
    """Whoever is woken can type what the alert says."""
    assert set(commands()) <= set(COMMANDS)
    assert len(set(commands())) > 3


def test_panels_do_not_overlap_and_are_described() -> None:
    """Grafana would move overlapping panels; each says what it shows."""
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        assert panel["description"].endswith(".")
        taken |= cells
