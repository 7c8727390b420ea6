"""Every query of the board, answered by a real Prometheus that scrapes the real service."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.dashboard import BOARD, QUERIES, Asked, substituted
from tests.support.mosquitto import Mosquitto
from tests.support.mosquitto import missing as missing_mosquitto
from tests.support.prometheus import Prometheus, require
from tests.support.service import Service, until

pytestmark = pytest.mark.server
TOKEN = "a-long-random-word"


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A real Prometheus that has scraped a healthy service with a stream, a query and a broker for a while."""
    require("prometheus")
    if missing_mosquitto():
        pytest.skip("needs mosquitto (Debian: mosquitto, mosquitto-clients)")
    folder = tmp_path_factory.mktemp("watched")
    broker = Mosquitto(folder)
    broker.start()
    try:
        with (
            Service(
                folder,
                streams={"hall": {"source": "scene://hall?seed=7&fps=4", "fps": 2}},
                queries={
                    "red": {
                        "streams": ["hall"],
                        "ask": "is there a red circle?",
                        "every": 1,
                        "announce": "always",
                    }
                },
                sinks=[broker.url],
                state={"dir": str(folder / "state"), "save_every": 1},
                http={"host": "127.0.0.1", "port": 0, "token": TOKEN},
            ) as service,
            Prometheus(folder, target=service.http.base_url.netloc.decode(), token=TOKEN) as it,
        ):
            delivered = (
                'sum(increase(stream_sttm_event_to_answer_seconds_count{sink!="feed"}[20s]))'
            )
            until(
                lambda: [row for row in it.query(delivered) if float(row["value"][1]) > 2],
                "answers reach the broker",
            )
            yield it
    finally:
        broker.stop()


@pytest.mark.parametrize("asked", QUERIES, ids=lambda asked: f"{asked.panel}-{asked.ref}")
def test_a_panel_query_returns_data_of_a_running_service(
    prometheus: Prometheus, asked: Asked
) -> None:
    expression = substituted(asked.expression)

    def numbers() -> list[float]:
        values = [float(row["value"][1]) for row in prometheus.query(expression)]
        return [value for value in values if math.isfinite(value)]

    assert until(numbers, f"data for {expression}", patience=10)


def test_the_stream_variable_offers_the_streams(prometheus: Prometheus) -> None:
    definition = next(v for v in BOARD["templating"]["list"] if v["name"] == "stream")["definition"]
    metric, label = definition.removeprefix("label_values(").removesuffix(")").split(", ")
    assert prometheus.api(f"label/{label}/values", **{"match[]": metric}) == ["hall"]


def test_prometheus_evaluates_every_rule_and_a_healthy_service_raises_no_alert(
    prometheus: Prometheus,
) -> None:
    def rules() -> list[dict[str, Any]]:
        return [rule for group in prometheus.api("rules")["groups"] for rule in group["rules"]]

    until(lambda: all(rule["health"] != "unknown" for rule in rules()), "the rules are evaluated")
    assert {rule["health"] for rule in rules()} == {"ok"}
    assert [rule["name"] for rule in rules() if rule["state"] == "firing"] == []
