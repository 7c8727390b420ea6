"""What a broker keeps of a running service is true: through a reload, and when a question is asked no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.mosquitto import Mosquitto
from tests.support.service import Service, until

pytestmark = pytest.mark.server


def test_a_reload_does_not_tell_a_connected_broker_as_lost(
    broker: Mosquitto, tmp_path: Path
) -> None:
    sinks = [f"{broker.url}/a", f"{broker.url}/b"]
    with Service(tmp_path, model="demo", streams={}, sinks=sinks, watch_file=None) as service:

        def connected() -> list[str]:
            told = service.http.get("/metrics").text.splitlines()
            return [line.split()[-1] for line in told if "mqtt_connected{" in line]

        until(lambda: connected() == ["1.0", "1.0"], "both are connected")
        service.http.post("/api/v1/config/reload").raise_for_status()
        assert connected() == ["1.0", "1.0"]
        service.config.write_text(service.config.read_text().replace("/test/a", "/test/a?node=n"))
        service.http.post("/api/v1/config/reload").raise_for_status()
        until(lambda: connected() == ["1.0", "1.0"], "the same broker and prefix, otherwise")
        text = service.config.read_text().replace(f"- {broker.url}/b\n", "")
        service.config.write_text(text)
        service.http.post("/api/v1/config/reload").raise_for_status()
        assert connected() == ["1.0"]


def test_a_question_that_is_asked_no_more_has_no_retained_answer(
    broker: Mosquitto, tmp_path: Path
) -> None:
    query = {"streams": ["door"], "ask": "Is there a circle?", "type": "yes_no", "every": 1}
    queries = {"still": {**query, "announce": "on_change"}}
    topic = "test/door/query/still/state"
    config = {"queries": queries, "sinks": [broker.url], "watch_file": None}
    config["streams"] = {"door": {"source": "scene://door", "fps": 2}}
    with broker.reader(topic) as reader, Service(tmp_path, model="demo", **config) as service:

        def word() -> str:
            return "".join(reader.payloads(topic)[-1:])

        def switch(is_on: bool) -> None:
            path = "/api/v1/queries/still/enabled"
            service.http.put(path, json={"enabled": is_on}).raise_for_status()

        until(lambda: word() in ("ON", "OFF"), "the first answer")
        switch(False)
        until(lambda: word() == "None", "nobody knows")
        switch(True)
        until(lambda: word() in ("ON", "OFF"), "an answer again, equal or not")
        text = service.config.read_text().replace("a circle?", "a square?")
        before = len(reader.payloads(topic))
        service.config.write_text(text)
        service.http.post("/api/v1/config/reload").raise_for_status()
        until(lambda: "None" in reader.payloads(topic)[before:], "another question")
        until(lambda: word() in ("ON", "OFF"), "its own answer")
