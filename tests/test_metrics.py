"""Series begin with what they are about, and go with it."""

from __future__ import annotations

import re

import pytest
import yaml
from prometheus_client import REGISTRY

from stream_sttm import metrics
from stream_sttm.sinks import open_sink
from tests.support.dashboard import FOLDER
from workers.config_check import faults_of


def series(**labels: str) -> set[str]:
    """The names of the series that carry these labels."""
    return {
        sample.name
        for family in REGISTRY.collect()
        for sample in family.samples
        if labels.items() <= sample.labels.items()
    }


def read_by_alerts() -> set[str]:
    rules = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"][0]["rules"]
    text = " ".join(rule["expr"] for rule in rules)
    return set(re.findall(r"stream_sttm_\w+_total", text))


def test_every_counter_that_an_alert_reads_exists_before_anything_goes_wrong() -> None:
    metrics.begin_stream("new-stream")
    metrics.begin_sink("new-sink")
    begun = series(stream="new-stream") | series(sink="new-sink")
    plain = {s.name for family in REGISTRY.collect() for s in family.samples if not s.labels}
    assert len(read_by_alerts()) >= 4
    assert read_by_alerts() <= begun | plain
    reasons = {"refused", "full", "expired", "lost", "unreadable", "shutdown"}
    told = {"sink": "new-sink"}
    for reason in reasons:
        name = "stream_sttm_sink_dropped_total"
        assert REGISTRY.get_sample_value(name, {**told, "reason": reason}) == 0
    metrics.begin_engine()
    assert {"stream_sttm_queue_depth"} <= series(queue="engine_clips")


@pytest.mark.parametrize(
    ("gone", "left"),
    [
        ({"stream": "old", "query": "a"}, [{"stream": "old", "query": "b"}, {"stream": "x"}]),
        ({"stream": "old"}, [{"stream": "x"}]),
    ],
)
def test_what_is_gone_leaves_no_series_and_takes_no_other_along(
    gone: dict[str, str], left: list[dict[str, str]]
) -> None:
    for stream in ("old", "x"):
        metrics.FRAMES_DROPPED.labels(stream, "queue_full").inc()
        metrics.QUEUE_DEPTH.labels(f"clips[{stream}]").set(1)
        for query in ("a", "b"):
            metrics.ANSWERS.labels(stream, query, "answered").inc()
        metrics.EVENT_TO_ANSWER.labels(stream, "feed").observe(1)
    if "query" in gone:
        metrics.forget(**gone)
    else:
        metrics.forget_stream(gone["stream"])
        assert not series(queue="clips[old]")
    assert not series(**gone)
    assert all(series(**each) for each in left)
    assert series(queue="clips[x]")


def test_a_broker_that_is_gone_is_not_told_as_disconnected() -> None:
    metrics.MQTT_CONNECTED.labels("gone:1883").set(0)
    metrics.SINK_DROPPED.labels("gone:1883", "full").inc()
    metrics.forget_sink("gone:1883")
    assert not series(broker="gone:1883") | series(sink="gone:1883")


def test_making_a_sink_or_checking_a_configuration_changes_no_metric() -> None:
    """A reload checks the configuration while the sinks of the one in force are connected."""
    url, name = "mqtt://127.0.0.1:1883/checked", "stream_sttm_mqtt_connected"
    sink = open_sink(url)
    assert REGISTRY.get_sample_value(name, {"broker": sink.name}) is None
    metrics.MQTT_CONNECTED.labels(sink.name).set(1)
    assert faults_of({"sinks": [url]}) == []
    open_sink(url)
    assert REGISTRY.get_sample_value(name, {"broker": sink.name}) == 1
    metrics.forget_sink(sink.name)
