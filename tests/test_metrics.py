"""Series of metrics: there from the start where an alert reads them, and gone with what they are about."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from prometheus_client import REGISTRY

from stream_sttm import metrics
from stream_sttm.sinks import open_sink
from stream_sttm.sinks.mqtt.sink import MqttSink
from workers.config_check import faults_of

ALERTS = yaml.safe_load((Path(__file__).parent.parent / "dashboards/alerts.yaml").read_text())
EXPRESSIONS = " ".join(rule["expr"] for group in ALERTS["groups"] for rule in group["rules"])


def _series(**labels: str) -> set[str]:
    """Return the names of all series that have these labels."""
    return {
        sample.name
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if labels.items() <= sample.labels.items()
    }


def _value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def test_what_alerts_read_of_a_sink_is_there_before_anything_happens() -> None:
    metrics.begin_sink("quiet:1883/a")
    read = set(re.findall(r"stream_sttm_sink_\w+", EXPRESSIONS))
    assert read == {"stream_sttm_sink_outbox_depth", "stream_sttm_sink_dropped_total"}
    assert read <= _series(sink="quiet:1883/a")
    for reason in metrics.DROPPED:
        assert _value("stream_sttm_sink_dropped_total", sink="quiet:1883/a", reason=reason) == 0


def test_what_alerts_read_of_dropped_frames_is_there_before_anything_happens() -> None:
    metrics.begin_stream("quiet")
    reasons = set(re.findall(r"reason=~\"([a-z_|]+)\"", EXPRESSIONS)) - {""}
    wanted = {reason for group in reasons for reason in group.split("|")}
    assert wanted
    for reason in wanted:
        assert _value("stream_sttm_frames_dropped_total", stream="quiet", reason=reason) == 0


def test_nothing_is_shown_any_more_of_what_is_gone_and_all_of_what_is_left() -> None:
    for stream in ("gone", "left"):
        metrics.begin_stream(stream)
        metrics.STREAM_UP.labels(stream).set(1)
        metrics.ANSWERS.labels(stream, "person", "answered").inc()
        metrics.EVENT_TO_ANSWER.labels(stream, "feed").observe(1)
    left = _series(stream="left")
    metrics.forget(stream="gone")
    assert _series(stream="gone") == set()
    assert _series(stream="left") == left
    metrics.ANSWERS.labels("left", "parcel", "answered").inc()
    metrics.forget(stream="left", query="person")
    assert _series(stream="left", query="person") == set()
    assert _series(stream="left", query="parcel")


def test_making_a_sink_or_checking_a_configuration_changes_no_metric() -> None:
    """A reload checks the configuration while the sinks of the one in force are connected."""
    url = "mqtt://127.0.0.1:1883/checked"
    sink = open_sink(url)
    assert isinstance(sink, MqttSink)
    assert _value("stream_sttm_mqtt_connected", broker=sink.name) is None
    metrics.MQTT_CONNECTED.labels(sink.name).set(1)
    assert faults_of({"sinks": [url]}) == []
    open_sink(url)
    assert _value("stream_sttm_mqtt_connected", broker=sink.name) == 1
    metrics.forget(broker=sink.name)
