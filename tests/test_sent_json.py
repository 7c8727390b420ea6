"""What is sent or stored as JSON is JSON: NaN and infinite numbers are none, and never get that far."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, Gauge

from stream_sttm.stats import Stats
from stream_sttm.types import StreamState, StreamStatus

ROOT = Path(__file__).parent.parent
SENDING = ("api", "control", "sinks", "storage", "sources/decoding")


def _lenient(path: Path) -> list[int]:
    """The lines on which JSON is written that may hold NaN."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("json.dumps", "json.dump", "dumps")
        and not any(
            keyword.arg == "allow_nan" and ast.unparse(keyword.value) == "False"
            for keyword in node.keywords
        )
    ]


@pytest.mark.parametrize("package", [*SENDING, "../workers"])
def test_what_writes_json_takes_no_number_that_json_has_not(package: str) -> None:
    paths = sorted((ROOT / "stream_sttm" / package).rglob("*.py"))
    assert paths
    assert {path.name: lines for path in paths if (lines := _lenient(path))} == {}


def test_a_metric_that_is_no_number_is_left_out_of_the_stats() -> None:
    gauge = REGISTRY._names_to_collectors["stream_sttm_merge_ratio"]
    assert isinstance(gauge, Gauge)
    gauge.labels("nan").set(float("nan"))
    status = StreamStatus("nan", StreamState.ONLINE, 0.0)
    stats = Stats().collect([status], model="m")
    gauge.remove("nan")
    assert stats["streams"]["nan"]["merge_ratio"] is None
    json.dumps(stats, allow_nan=False)
