"""What reaches the standing queries from outside: Frigate's sightings and triggers, by stream and as configured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import REGISTRY

from stream_sttm import metrics
from stream_sttm.config.settings import Settings
from stream_sttm.control.switches import Switches
from stream_sttm.errors import (
    NotPossible,
    NotReady,
    QuestionRejected,
    UnknownQuery,
    UnknownStream,
)
from stream_sttm.sinks import open_sink
from stream_sttm.storage.answers import AnswerStore
from workers.config_check import faults_of
from workers.control import Control, Parts

STREAMS = {
    "door": {"source": "scene://a"},
    "yard": {"source": "scene://b", "frigate": "back_yard"},
    "off": {"source": "scene://c", "enabled": False},
}
NIGHT = {"zone": "UTC", "quiet": ["00:00-24:00"]}
QUERIES = {
    "person": {"streams": ["door", "yard", "off"], "on_event": ["frigate:person", "manual"]},
    "any": {"streams": ["yard"], "on_event": ["frigate"]},
    "calm": {"streams": ["door"], "on_event": ["change"]},
    "night": {"streams": ["door"], "schedule": NIGHT},
    "none": {"streams": ["off"]},
}


SINKS = [
    "mqtt://broker.example/one?discovery=homeassistant",
    "mqtts://broker.example/two",
    "http://hook.example/x",
    "https://hook.example/y#secret=z",
]


def samples() -> dict[tuple[str, str], float]:
    """Every series of ours and its value."""
    return {
        (sample.name, str(sorted(sample.labels.items()))): sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name.startswith("stream_sttm_") and not sample.name.endswith("_created")
    }


def test_checking_a_configuration_changes_no_metric() -> None:
    """A gauge that is set to 0 by a check raises the alarm of a broker that is connected."""
    for sink in SINKS[:2]:
        name = open_sink(sink).name
        metrics.MQTT_CONNECTED.labels(name).set(1)
    before = samples()
    streams = {"cam": {"source": "rtsp://cam.example/x"}, "drawn": {"source": "scene://a"}}
    assert faults_of({"sinks": SINKS, "streams": streams, "memory": {"retention": "lru"}}) == []
    assert samples() == before
    for sink in SINKS[:2]:
        metrics.forget_sink(open_sink(sink).name)


class Calls:
    """The analysis as far as a control calls it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def call(self, stream: str, query: str) -> bool:
        self.calls.append((stream, query))
        return True


@pytest.fixture
def store() -> Iterator[AnswerStore]:
    with AnswerStore(":memory:") as opened:
        yield opened


@pytest.fixture
def control(store: AnswerStore) -> Control:
    """A control that has not started."""
    queries = {name: {"ask": "?", **query} for name, query in QUERIES.items()}
    return Control(Settings(streams=STREAMS, queries=queries), Switches(store.file))


@pytest.fixture
def calls(control: Control) -> Calls:
    """What the control calls once it has started."""
    calls, nothing = Calls(), dict.fromkeys(Parts.__dataclass_fields__)
    control._parts = Parts(**{**nothing, "analysis": calls})  # type: ignore[arg-type]
    return calls


def seen(camera: str, label: str, kind: str = "new") -> bytes:
    side = {"camera": camera, "label": label}
    return json.dumps({"type": kind, "before": side, "after": side}).encode()


def counted(result: str, source: str = "frigate") -> float:
    labels = {"source": source, "result": result}
    return REGISTRY.get_sample_value("stream_sttm_triggers_total", labels) or 0.0


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (seen("door", "person"), [("door", "person")]),
        (seen("back_yard", "Person"), [("yard", "person"), ("yard", "any")]),
        (seen("back_yard", "car"), [("yard", "any")]),
        (seen("yard", "person"), []),  # its camera has another name there
        (seen("door", "car"), []),
        (seen("off", "person"), []),
        (seen("elsewhere", "person"), []),
        (seen("door", "person", "update"), []),
        (seen("door", "person", "end"), []),
    ],
)
def test_a_sighting_reaches_the_queries_that_wait_for_it_on_that_camera(
    control: Control, calls: Calls, payload: bytes, expected: list[tuple[str, str]]
) -> None:
    control.sighted(payload)
    assert calls.calls == expected


def test_garbage_and_what_nobody_waits_for_is_counted(
    control: Control, calls: Calls, caplog: pytest.LogCaptureFixture
) -> None:
    before = {result: counted(result) for result in ("garbage", "unheard", "asked")}
    for payload in (b"\xff", b"{}", seen("elsewhere", "person"), seen("door", "person")):
        control.sighted(payload)
    assert {result: counted(result) - before[result] for result in before} == {
        "garbage": 2, "unheard": 1, "asked": 1,
    }  # fmt: skip
    assert len(caplog.messages) == 2
    assert calls.calls == [("door", "person")]


def test_a_sighting_before_the_start_is_let_pass(control: Control) -> None:
    control.sighted(seen("door", "person"))


async def test_a_trigger_asks_on_every_stream_that_is_on(control: Control, calls: Calls) -> None:
    assert await control.trigger("person") == ["door", "yard"]
    assert await control.trigger("person", "yard") == ["yard"]
    assert calls.calls == [("door", "person"), ("yard", "person"), ("yard", "person")]


@pytest.mark.parametrize(
    ("query", "stream", "kind", "line"),
    [
        ("persom", None, UnknownQuery, "did you mean 'person'"),
        ("person", "dor", UnknownStream, "did you mean 'door'"),
        ("any", "door", QuestionRejected, "is not asked of stream 'door'"),
        ("any", None, NotPossible, "no 'manual' in its on_event"),
        ("night", None, NotPossible, "not asked at this hour"),
        ("none", None, NotPossible, "is disabled, or its stream is"),
        ("person", "off", NotPossible, "is disabled, or its stream is"),
    ],
)
async def test_a_trigger_that_asks_nothing_says_why(
    control: Control, calls: Calls, query: str, stream: str | None, kind: Any, line: str
) -> None:
    with pytest.raises(kind, match=line):
        await control.trigger(query, stream)
    assert calls.calls == []


async def test_before_the_start_everything_is_refused(control: Control) -> None:
    for refused in (
        control.trigger("person"),
        control.reload(),
        control.set_stream_enabled("door", False),
    ):
        with pytest.raises(NotReady):
            await refused
