"""Dashboards for Grafana: their queries name what the code exports, and every metric of data runs is shown."""

import ast
import json
import re
from typing import Any

import pytest

from pipelines.data_metrics import COUNTED, MEASURED
from serve.middleware import Metrics
from tests.conftest import ROOT

FOLDER = ROOT / "deploy" / "grafana"
NAME = re.compile(r"\b(?:ray_)?videolavit_\w+")
DATA = {f"ray_{name}_total" for name in COUNTED} | {f"ray_{name}" for name in MEASURED}
TRAIN = "ray_videolavit_train_"


def dashboard(name: str) -> dict[str, Any]:
    return dict(json.loads((FOLDER / f"{name}.json").read_text()))


def named(name: str) -> set[str]:
    """Metrics in the queries of a dashboard."""
    targets = [target for panel in dashboard(name)["panels"] for target in panel["targets"]]
    assert targets
    return {found for target in targets for found in NAME.findall(target["expr"])}


def test_metrics_of_data_runs() -> None:
    assert named("data") == DATA


def test_metrics_of_trainings() -> None:
    """They are named by `RayMetrics` after the keys that a trainer publishes."""
    published = {"step"}
    for module in ("metrics", "trainer"):
        source = (ROOT / f"platform/videolavit/training/{module}.py").read_text()
        published |= {
            key.value
            for node in ast.walk(ast.parse(source))
            for key in (node.keys if isinstance(node, ast.Dict) else [])
            if isinstance(key, ast.Constant) and isinstance(key.value, str)
        }
        published |= set(re.findall(r'metrics\["(\w+)"\]', source))
    assert {name.removeprefix(TRAIN) for name in named("training")} <= published


def test_metrics_of_the_service() -> None:
    exported = set()
    for family in Metrics().registry.collect():
        ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        exported |= {f"{family.name}{end}" for end in ends}
    assert named("serving") <= exported


@pytest.mark.parametrize("name", ["data", "training", "serving"])
def test_panels_lie_side_by_side_and_ask_the_chosen_source(name: str) -> None:
    found = dashboard(name)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in found["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in found["panels"]}) == len(places)
    assert {panel["datasource"]["uid"] for panel in found["panels"]} == {"${datasource}"}
    assert found["templating"]["list"][0]["name"] == "datasource"
