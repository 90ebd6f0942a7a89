"""The dashboard and the alerts ask for what there is, and the page explains each alert."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from relay.concurrency.supervisor import TaskState
from relay.hub.ledger import Drop
from relay.metrics import Limit
from relay.protocol.endings import Ending
from relay.web.exposition import AUTH_OUTCOMES
from tests.unit.web.test_exposition import OPERATIONS, documented

DOCS = OPERATIONS.parent
DASHBOARD = json.loads((DOCS / "grafana.json").read_text("utf-8"))
RULES = yaml.safe_load((DOCS / "prometheus-rules.yml").read_text("utf-8"))

OF_PROMETHEUS = {"instance", "job", "le"}
FUNCTIONS = {"rate", "increase", "sum", "max", "histogram_quantile"}
WORDS = {"by", "on", "and"}
VALUES = {
    "outcome": {*AUTH_OUTCOMES, "written", "dropped", "received", "lost"},
    "ending": {ending.label for ending in Ending},
    "limit": {limit.value for limit in Limit},
    "state": {state.value for state in TaskState},
    "reason": {drop.value for drop in Drop},
}


def metrics() -> dict[str, tuple[str, set[str]]]:
    """By the name in a query: the type and the labels."""
    found: dict[str, tuple[str, set[str]]] = {"up": ("gauge", set())}
    for name, kind, labels, _ in documented():
        if kind == "histogram":
            for part in ("bucket", "sum", "count"):
                found[f"{name}_{part}"] = ("counter", labels)
        else:
            found[name] = (kind, labels)
    return found


METRICS = metrics()


def panels() -> list[dict[str, Any]]:
    return [each for each in DASHBOARD["panels"] if each["type"] != "row"]


def alerts() -> list[dict[str, Any]]:
    return [rule for group in RULES["groups"] for rule in group["rules"]]


QUERIES = [
    *(
        (f"{panel['title']} {target['refId']}", target["expr"], target["legendFormat"])
        for panel in panels()
        for target in panel["targets"]
    ),
    *((rule["alert"], rule["expr"], rule["annotations"]["summary"]) for rule in alerts()),
]


@pytest.mark.parametrize(
    ("expression", "text"), [each[1:] for each in QUERIES], ids=[each[0] for each in QUERIES]
)
def test_a_query_names_only_what_there_is(expression: str, text: str) -> None:
    assert list(objections(expression, text)) == []


def objections(expression: str, text: str) -> Iterator[str]:
    bare = re.sub(r'"[^"]*"', '""', expression)
    for opening, closing in ("()", "{}", "[]"):
        if bare.count(opening) != bare.count(closing):
            yield f"{opening} and {closing} do not match"
    labels: set[str] = set()
    names: set[str] = set()
    for name, matchers in re.findall(r"([A-Za-z_]\w*)\s*(?:\{([^}]*)\})?", outside_of(expression)):
        if name not in FUNCTIONS | WORDS:
            names.add(name)
            compared = dict(re.findall(r'(\w+)\s*=~?\s*"([^"]*)"', matchers))
            labels |= compared.keys()
            yield from object_to_values(compared)
    for group in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression):
        labels |= set(re.findall(r"\w+", group))
    labels |= set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", text))
    yield from object_to_names(names, labels)
    for name in names & METRICS.keys():
        is_counter = METRICS[name][0] == "counter"
        if is_counter != bool(re.search(rf"(?:rate|increase)\s*\(\s*{name}\b", expression)):
            yield f"{name} is a {METRICS[name][0]}: rate and increase are for counters"


def object_to_values(compared: dict[str, str]) -> Iterator[str]:
    for label, value in compared.items():
        if label in VALUES:
            yield from (f"{each} is no {label}" for each in set(value.split("|")) - VALUES[label])


def object_to_names(names: set[str], labels: set[str]) -> Iterator[str]:
    if not names:
        yield "it names no metric"
    yield from (f"there is no metric {each}" for each in names - METRICS.keys())
    known = OF_PROMETHEUS.union(*(METRICS[each][1] for each in names & METRICS.keys()))
    yield from (f"there is no label {each}" for each in labels - known)


def outside_of(expression: str) -> str:
    """A query without its grouping clauses and ranges, which have other names."""
    return re.sub(r"\b(?:by|on)\s*\([^)]*\)|\[[^\]]*\]", " ", expression)


@pytest.mark.parametrize(
    ("expression", "objection"),
    [
        ("rate(relay_frames_total[5m])", "no metric relay_frames_total"),
        ('relay_service_state{state="broken"}', "broken is no state"),
        ('relay_service_state{status="failed"}', "no label status"),
        ("sum by (stream) (relay_consumers)", "no label stream"),
        ("rate(relay_consumers[5m])", "relay_consumers is a gauge"),
        ("relay_alerts_stored_total", "relay_alerts_stored_total is a counter"),
        ("sum (relay_consumers", "do not match"),
        ("histogram_quantile(0.5, rate(relay_frame_age_seconds[5m]))", "no metric relay_frame_age"),
    ],
)
def test_what_is_not_there_is_found(expression: str, objection: str) -> None:
    assert objection in " ".join(objections(expression, ""))


def test_the_dashboard_can_be_imported_anywhere() -> None:
    (source,) = DASHBOARD["__inputs"]
    assert (source["type"], source["pluginId"]) == ("datasource", "prometheus")
    assert DASHBOARD["id"] is DASHBOARD["uid"] is None  # Grafana gives both
    used = {"type": "prometheus", "uid": f"${{{source['name']}}}"}
    for each in (*panels(), *DASHBOARD["templating"]["list"]):
        assert each["datasource"] == used
    assert all(target["datasource"] == used for each in panels() for target in each["targets"])
    required = {each["id"] for each in DASHBOARD["__requires"] if each["type"] == "panel"}
    assert required == {each["type"] for each in panels()}


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for each in DASHBOARD["panels"]:
        place = each["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, each["title"]
        taken |= cells
    ids = [each["id"] for each in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_an_alert_has_all_that_prometheus_and_people_want_of_it() -> None:
    for rule in alerts():
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch("Relay[A-Za-z]+", rule["alert"])
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
    names = [rule["alert"] for rule in alerts()]
    assert len(names) == len(set(names))


def test_the_page_explains_each_alert_and_no_other() -> None:
    _, _, after = OPERATIONS.read_text("utf-8").partition("\n## What each alarm means\n")
    section = after.partition("\n## ")[0]
    assert re.findall(r"^- \*\*(\w+)\*\*", section, re.MULTILINE) == [
        rule["alert"] for rule in alerts()
    ]
