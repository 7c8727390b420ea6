"""Memories over restarts, with the real service: stopped, killed, given bad files and a disk that takes nothing."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.service import Service, until

CAMERA = {"cam": {"source": "scene://7", "fps": 4}}


def serve(folder: Path, **state: Any) -> Service:
    return Service(
        folder, streams=CAMERA, state={"dir": str(folder / "state"), "save_every": 1, **state}
    )


def answer(service: Service) -> dict[str, Any]:
    """What the camera's memory says as soon as it has one."""

    def asked() -> Any:
        reply = service.http.post(
            "/api/v1/ask", json={"stream": "cam", "question": "what do you see now?"}
        )
        return reply.json() if reply.status_code == 200 else None

    found: dict[str, Any] = until(asked, "an answer")
    return found


def saved(folder: Path) -> Any:
    file = folder / "state" / "cam.safetensors"
    return until(lambda: file.exists() and file.stat().st_mtime, "a saved memory")


def test_a_stopped_service_remembers_after_its_restart(tmp_path: Path) -> None:
    with serve(tmp_path, save_every=3600) as service:
        began = answer(service)["window"][0]
        assert not (tmp_path / "state").exists()
        assert service.stop() == 0
    assert saved(tmp_path)
    restarted = time.time()
    with serve(tmp_path) as service:
        assert answer(service)["window"][0] == began < restarted
        assert 'result="restored",stream="cam"} 1.0' in service.http.get("/metrics").text
    assert "its memory of" in service.log.read_text()


def test_a_killed_service_loses_at_most_what_came_after_the_last_save(tmp_path: Path) -> None:
    with serve(tmp_path) as service:
        began = answer(service)["window"][0]
        first = saved(tmp_path)
        until(lambda: saved(tmp_path) > first, "a second save")
        service.stop(signal.SIGKILL)
    with serve(tmp_path) as service:
        assert answer(service)["window"][0] == began


def test_a_bad_file_is_set_aside_and_its_stream_starts_empty(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / "cam.safetensors").write_bytes(b"no memory at all")
    started = time.time()
    with serve(tmp_path, save_every=3600) as service:
        assert answer(service)["window"][0] > started
        assert (folder / "cam.refused").read_bytes() == b"no memory at all"
    told = [line for line in service.log.read_text().splitlines() if "starts empty" in line]
    assert len(told) == 1
    assert "cam.safetensors" in told[0]


@pytest.mark.slow
def test_a_memory_that_is_too_old_or_of_another_setting_is_left_out(tmp_path: Path) -> None:
    with serve(tmp_path) as service:
        answer(service)
        assert service.stop() == 0
    with serve(tmp_path, max_age=0.001, save_every=3600) as service:
        assert 'result="too_old",stream="cam"} 1.0' in service.http.get("/metrics").text
        answer(service)
        assert service.stop() == 0
    other = Service(
        tmp_path,
        streams=CAMERA,
        memory={"window_tokens": 1024},
        state={"dir": str(tmp_path / "state"), "save_every": 3600},
    )
    with other as service:
        assert answer(service)
    assert "window_tokens was 4096 and is 1024" in service.log.read_text()


def test_a_disk_that_takes_nothing_stops_saving_and_not_answering(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    with serve(tmp_path) as service:
        until(lambda: "can't be saved" in service.log.read_text(), "the failure is told")
        assert answer(service)["answer"]
        failed = 'stream_sttm_state_total{result="failed",stream="cam"}'
        until(lambda: failed + " 2.0" in service.http.get("/metrics").text, "a second try")
        assert answer(service)["answer"]
    assert service.log.read_text().count("can't be saved") == 1
