"""dashboards/stream.json as tests read it: its panels, and their queries as Grafana would send them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parents[2] / "dashboards"
BOARD = json.loads((FOLDER / "stream.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
# What Grafana puts in: $stream for "All", and windows for a data source scraped every 5 s on a board of 15 minutes.
GRAFANA = {"$stream": ".*", "$__rate_interval": "20s", "$__range": "900s", "$__interval": "5s"}


class Asked(NamedTuple):
    """One query of one panel."""

    panel: str
    ref: str
    expression: str


QUERIES = [
    Asked(panel["title"], target["refId"], target["expr"])
    for panel in PANELS
    for target in panel["targets"]
]


def substituted(expression: str) -> str:
    """Return the expression with every variable replaced."""
    for variable in sorted(GRAFANA, key=len, reverse=True):
        expression = expression.replace(variable, GRAFANA[variable])
    assert "$" not in expression
    return expression
