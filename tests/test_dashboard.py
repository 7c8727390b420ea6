"""The Grafana board and the alert rules by themselves; test_dashboard_live.py asks a real Prometheus."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.dashboard import BOARD, FOLDER, GRAFANA, PANELS, QUERIES
from tests.support.prometheus import promtool, require

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def test_panels_have_their_own_ids_and_places() -> None:
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows_in_which_unit_from_the_chosen_source(
    panel: dict[str, Any],
) -> None:
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == DATASOURCE
    for target in panel["targets"]:
        assert target["datasource"] == DATASOURCE
        assert target["legendFormat"]
    references = [target["refId"] for target in panel["targets"]]
    assert len(set(references)) == len(references)


def test_the_board_finds_the_provisioned_data_source_without_being_told() -> None:
    variables = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
    assert variables["datasource"]["current"]["value"] == "prometheus"
    assert variables["stream"]["allValue"] == GRAFANA["$stream"]


def test_a_query_of_a_metric_with_streams_follows_the_chosen_streams() -> None:
    for asked in QUERIES:
        if "stream_up" in asked.expression or "frames_" in asked.expression:
            assert '{stream=~"$stream"}' in asked.expression, asked


@pytest.mark.server
def test_promtool_accepts_the_rules_and_every_one_fires_when_it_should_only() -> None:
    require("promtool")
    promtool("check", "rules", FOLDER / "alerts.yaml")
    promtool("test", "rules", FOLDER / "alerts.test.yaml")
