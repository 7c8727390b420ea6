"""The main job from outside: a real RTSP camera, a real broker, the service as a process, and its users' clients."""

from __future__ import annotations

import json
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stream_sttm.sources.scene import Scene
from tests.support.mosquitto import MakeBroker, Mosquitto, Reader
from tests.support.rtsp_server import RtspCamera, why_missing
from tests.support.service import Service, until

USER, PASSWORD = "viewer", "hunter-2-camera"
QUERY = {"streams": ["cam"], "ask": "how many objects are there?", "every": 2, "announce": "always"}


@pytest.fixture
def camera(scene_video: Path) -> Any:
    """An RTSP camera that wants a password and loops four seconds of a scene."""
    if (why := why_missing()) is not None:
        pytest.skip(why)
    with RtspCamera(scene_video, user=USER, password=PASSWORD) as running:
        yield running


def _answers(reader: Reader, stream: str = "cam", query: str = "look") -> list[dict[str, Any]]:
    return [
        json.loads(payload) for payload in reader.payloads(f"test/{stream}/query/{query}/answer")
    ]


@pytest.mark.server
@pytest.mark.timeout(240)
def test_camera_to_mqtt_and_http_and_back_after_the_camera_died(
    tmp_path: Path, broker: Mosquitto, camera: RtspCamera
) -> None:
    with broker.reader("#") as reader:
        source = f"rtsp://{USER}:{PASSWORD}@{camera.address}"
        with Service(
            tmp_path,
            streams={"cam": {"source": source, "fps": 2, "stall_after": 2}},
            queries={"look": QUERY},
            sinks=[f"{broker.url}?discovery=homeassistant"],
        ) as service:
            until(lambda: len(_answers(reader)) >= 3, "three answers on MQTT")
            answer = _answers(reader)[-1]
            assert answer["question"] == QUERY["ask"]
            assert answer["stream"] == "cam"
            assert answer["model"] == "demo"
            assert 0 < answer["event_to_answer_ms"] < 30_000
            start, end = answer["window"]
            assert start < end == answer["frame_time"] < answer["answered_at"]
            assert 0 < answer["tokens"]["visual"] <= answer["tokens"]["visual_before_merge"]
            assert reader.payloads("test/available")[-1] == "online"
            assert reader.payloads("test/cam/status")[-1] == "online"
            states = partial(reader.payloads, "test/cam/query/look/state")
            until(lambda: states()[-1] == _answers(reader)[-1]["answer"], "the newest is the state")

            # On demand, by the library and by curl.
            reply = service.ask("cam", "is there a red circle?")
            assert reply.json()["answer"] in ("yes", "no")
            curl = subprocess.run(
                ["curl", "-sS", "-X", "POST", f"{service.http.base_url}/api/v1/ask",
                 "-H", "Content-Type: application/json",
                 "-d", '{"stream": "cam", "question": "what objects are there?"}'],
                capture_output=True, check=True, timeout=60,
            )  # fmt: skip
            assert json.loads(curl.stdout)["answer"]
            # On demand over MQTT, by mosquitto's own client.
            asked = '{"question": "is there a red circle?", "id": "mine"}'
            publish = ["mosquitto_pub", "-p", str(broker.port), "-t", "test/cam/ask", "-m", asked]
            subprocess.run(publish, check=True, timeout=60)
            until(lambda: reader.payloads("test/cam/ask/mine/answer"), "the answer on MQTT")
            mine = json.loads(reader.payloads("test/cam/ask/mine/answer")[0])
            assert (mine["id"], mine["query"], mine["answer"] in ("yes", "no")) == (
                "mine",
                None,
                True,
            )
            until(
                lambda: any(
                    json.loads(stats)["streams"]["cam"]["fps"]
                    for stats in reader.payloads("test/stats")
                ),
                "the numbers on MQTT",
            )
            announced = reader.payloads("homeassistant/device/test_cam/config")
            assert "answer_look" in json.loads(announced[-1])["cmps"]

            stored = service.get("/api/v1/answers?stream=cam&query=look")["answers"]
            assert {row["id"] for row in stored} >= {row["id"] for row in _answers(reader)[:3]}

            camera.kill()
            until(lambda: service.state("cam") != "online", "the dead camera is noticed")
            until(lambda: reader.payloads("test/cam/status")[-1] != "online", "and told on MQTT")
            assert service.ask(
                "cam", "is there a red circle?"
            ).is_success  # the memory still answers
            seen = len(_answers(reader))
            camera.start()
            until(lambda: service.state("cam") == "online", "the camera is back")
            until(lambda: len(_answers(reader)) > seen + 1, "answers flow again")

            metrics = service.http.get("/metrics").text
            for name in ("frames_received", "visual_tokens", "event_to_answer_seconds_count"):
                assert f"stream_sttm_{name}" in metrics
            shown = metrics + json.dumps(service.get("/api/v1/streams")) + json.dumps(stored)
            assert service.stop() == 0
        until(lambda: reader.payloads("test/available")[-1] == "stopped", "goodbye on MQTT")
        everything = shown + service.log.read_text() + json.dumps(reader.messages())
        assert PASSWORD not in everything


@pytest.mark.server
@pytest.mark.timeout(240)
def test_every_kind_of_trouble_is_told_in_one_line_and_leaves_others_alone(
    tmp_path: Path,
    make_broker: MakeBroker,
    camera: RtspCamera,
) -> None:
    """No broker at first, a wrong password, nobody there, no video; beside them a stream that just works."""
    broker = make_broker()
    text = tmp_path / "notes.mp4"
    text.write_text("this is no video\n" * 100)
    streams = {
        "fine": {"source": "scene://hall?seed=3"},
        "locked": {"source": f"rtsp://{USER}:wrong-secret@{camera.address}"},
        "gone": {"source": "rtsp://someone:hidden-word@127.0.0.1:9/live"},
        "text": {"source": f"file://{text}"},
    }
    query = {**QUERY, "streams": ["fine"]}
    with Service(tmp_path, streams=streams, queries={"look": query}, sinks=[broker.url]) as service:
        reasons = {}
        for name in ("locked", "gone", "text"):
            status = until(
                lambda name=name: (s := service.get(f"/api/v1/streams/{name}"))["reason"] and s,
                f"stream {name} says what is wrong",
            )
            reasons[name] = status["reason"]
            assert "\n" not in status["reason"]
            assert status["state"] in ("offline", "connecting")
        until(
            lambda: service.ask("fine", "how many objects are there?").is_success,
            "the good stream answers",
        )
        assert service.ask("gone", "hi").status_code == 503
        assert service.ask("fin", "hi").status_code == 404
        assert "did you mean 'fine'" in service.ask("fin", "hi").json()["error"]
        assert service.ask("fine", "").status_code == 422
        assert service.ask("fine", "x" * 1_000_000).status_code == 422
        assert service.http.post("/api/v1/ask", content=b"\xff{not json").status_code == 422
        assert service.ask("fine", "is there a red circle?").is_success
        broker.start()
        with broker.reader() as reader:
            until(lambda: _answers(reader, "fine"), "answers arrive once the broker is there")
            until(lambda: reader.payloads("test/gone/status"), "and every stream's status")
        everything = service.log.read_text() + json.dumps(service.get("/api/v1/streams"))
        everything += service.http.get("/metrics").text + json.dumps(reasons)
        assert service.stop() == 0
    for secret in ("wrong-secret", "hidden-word"):
        assert secret not in everything


@pytest.mark.timeout(240)
def test_answers_over_a_drawn_scene_are_mostly_true(tmp_path: Path) -> None:
    """Not one lucky answer: yes/no questions about what is and what is not there, through the whole service."""
    scene = Scene(11)
    with Service(tmp_path, streams={"cam": {"source": "scene://hall?seed=11"}}) as service:
        until(lambda: service.state("cam") == "online", "the scene is online")
        first = until(
            lambda: (
                (r := service.ask("cam", "how many objects are there?")).is_success and r.json()
            ),
            "the first answer",
        )
        # Scene time 0 is the source's opening; the first window begins with its first frame.
        epoch = first["window"][0]
        right = wrong = 0
        for index in range(40):
            end = (
                until(lambda: service.get("/api/v1/streams/cam")["last_frame_at"], "a frame")
                - epoch
            )
            subject = [t.name for t in scene.objects_at(end)][:1] or ["red circle"]
            colour = ("red", "green", "blue", "white")[index % 4]
            asked = subject[0] if index % 2 else f"{colour} {subject[0].split()[1]}"
            answer = service.ask(
                "cam", f"is there a {asked}?".replace("a orange", "an orange")
            ).json()
            start, end = (at - epoch for at in answer["window"])
            truth = scene.truth("exist", start, end, subject=asked)
            right += answer["answer"] == truth
            wrong += truth is not None and answer["answer"] != truth
    assert right + wrong >= 20
    assert right / (right + wrong) >= 0.8
