"""What recall keeps, over restarts: the same answers, within the same bounds, and never in the way of the memory."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stream_sttm.config.storage import StateSettings
from stream_sttm.engine.checkpoint import archive_file, session_file, tensor_file
from stream_sttm.engine.engine import Engine
from stream_sttm.models.family import VideoLLM
from stream_sttm.types import Answer, Question
from tests.engine.recall.test_recall import STREAM, _ask, _clip, _engine, _run, _show
from tests.support.service import Service, until
from workers.checkpoints import Checkpoints
from workers.engine_host import EngineHost

_THREAD = ThreadPoolExecutor(1, thread_name_prefix="past")


@pytest.fixture(scope="session", autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    _THREAD.shutdown()


def _keeping(engine: Engine, folder: Path, *streams: str) -> Checkpoints:
    return Checkpoints(
        EngineHost(engine, _THREAD, clock=lambda: 0.0),
        StateSettings(dir=str(folder), save_every=3600),
        lambda: streams or (STREAM,),
        clock=lambda: 0.0,
    )


async def _stopped(keeping: Checkpoints) -> None:
    """Run and stop, which saves."""
    running = asyncio.create_task(keeping.run())
    await asyncio.sleep(0)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


def _left(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def _told(answers: dict[str, Answer]) -> list[tuple[Any, ...]]:
    return [(one.text, one.tokens, one.span) for one in answers.values()]


def _gone(engine: Engine, until: float = float("inf")) -> set[tuple[float, int]]:
    """What the memory has lost of windows from before `until`: when each was captured, and which of its tokens."""
    session = engine.sessions.of(STREAM)
    assert session is not None
    assert session.archive is not None
    gone = session.archive.evicted(session.cache.deep.table.serials)
    assert gone is not None
    pairs = zip(gone.owner.tolist(), gone.row.tolist(), strict=True)
    lost = {(gone.windows[owner].captured[0], row) for owner, row in pairs}
    assert lost
    return {(at, row) for at, row in lost if at < until}


@pytest.mark.parametrize("place", ["", "shelf"])
async def test_what_is_recalled_after_a_restart_is_what_was_before_it(
    tiny_model: VideoLLM, tmp_path: Path, place: str
) -> None:
    """Token for token, and so it goes on."""
    recall = {"dir": str(tmp_path / place) if place else None}
    engine = _engine(tiny_model, "auto", **recall)
    _show(engine, 30)
    await _stopped(_keeping(engine, tmp_path / "state"))
    before = _ask(engine, "always", "never", "always")
    _show(engine, 5, first=30)
    later = _ask(engine, "always", "never", "always")
    assert before["q0"].tokens.recalled == 64

    again = _engine(tiny_model, "auto", **recall)
    await _keeping(again, tmp_path / "state").restore()
    assert _told(_ask(again, "always", "never", "always")) == _told(before)
    _show(again, 5, first=30)
    assert _told(_ask(again, "always", "never", "always")) == _told(later)


@pytest.mark.parametrize("saved", ["memory", "past"])
async def test_a_kill_between_two_files_of_a_save_after_a_restart_mistakes_no_token_for_gone(
    tiny_model: VideoLLM, tmp_path: Path, saved: str
) -> None:
    """One file is then of before the restart, the other of after it: what both know is still told apart."""
    engine = _engine(tiny_model, "always")
    _show(engine, 30)
    await _stopped(_keeping(engine, tmp_path))
    before, gone = _ask(engine, "always", "never"), _gone(engine)
    for run in range(3):  # killed each time in its first save
        engine = _engine(tiny_model, "always")
        await _keeping(engine, tmp_path).restore()
        if saved == "memory":
            _show(engine, 2, first=30 + 2 * run)
            memory = engine.sessions.saved(STREAM)
            assert memory is not None
            session_file.write(tmp_path, memory)
            before, gone = _ask(engine, "always", "never"), _gone(engine, until=60.0)
        else:
            past = engine.sessions.saved_past(STREAM)
            assert past is not None
            archive_file.write(tmp_path, past)
            _show(engine, 2, first=30)
    last = _engine(tiny_model, "always")
    await _keeping(last, tmp_path).restore()
    assert _told(_ask(last, "always", "never")) == _told(before)
    assert _gone(last) == gone


async def test_the_past_is_back_even_where_the_memory_is_not(
    tiny_model: VideoLLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = _engine(tiny_model, "always")
    _show(engine, 30)
    await _stopped(_keeping(engine, tmp_path))
    session_file.path_of(tmp_path, STREAM).write_bytes(b"no memory at all")
    again = _engine(tiny_model, "always")
    with caplog.at_level(logging.INFO):
        await _keeping(again, tmp_path).restore()
    assert [one.levelname for one in caplog.records] == ["WARNING", "INFO"]
    assert "its past is back, 30 windows" in caplog.text
    _show(again, 1, first=40)
    answer = _ask(again, None)["q0"]
    assert answer.tokens.recalled == 64
    assert answer.span[0] < 60


@pytest.mark.parametrize("damage", ["truncated", "another model"])
async def test_a_bad_past_is_set_aside_in_one_line_and_the_memory_is_back(
    tiny_model: VideoLLM,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    engine = _engine(tiny_model, "always")
    _show(engine, 30)
    await _stopped(_keeping(engine, tmp_path))
    if damage == "truncated":
        part = max(archive_file.path_of(tmp_path, STREAM).iterdir(), key=lambda p: p.stat().st_size)
        part.write_bytes(part.read_bytes()[:-1])
    else:
        saved = engine.sessions.saved_past(STREAM)
        assert saved is not None
        archive_file.write(tmp_path, replace(saved, fits={**saved.fits, "model": "another"}))
    again = _engine(tiny_model, "always")
    with caplog.at_level(logging.INFO):
        await _keeping(again, tmp_path).restore()
    told = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert len(told) == 1
    assert f"stream {STREAM} starts without its past: " in told[0]
    assert f"it is now {tmp_path / STREAM}.past-refused" in told[0]
    assert "its memory of 0 s ago is back" in caplog.text
    assert not archive_file.path_of(tmp_path, STREAM).exists()
    answer = _ask(again, "always")["q0"]
    assert answer.tokens.recalled == 0
    assert answer.span == _ask(engine, "never")["q0"].span
    await _stopped(_keeping(again, tmp_path))
    assert archive_file.read(tmp_path, STREAM) is not None


async def test_a_past_that_can_not_be_saved_is_told_once_and_the_memory_is_saved(
    tiny_model: VideoLLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = _engine(tiny_model, "always")
    _show(engine, 10)
    home = archive_file.path_of(tmp_path, STREAM)
    home.write_text("a file where the folder should be")
    keeping = _keeping(engine, tmp_path)
    await _stopped(keeping)
    _show(engine, 1, first=10)
    await _stopped(keeping)
    assert caplog.text.count("its past can't be saved to") == 1
    assert session_file.read(tmp_path, STREAM) is not None
    home.unlink()
    await _stopped(keeping)
    assert archive_file.read(tmp_path, STREAM) is not None
    assert _ask(engine, None)["q0"].tokens.recalled > 0


async def test_of_a_removed_stream_nothing_is_left_and_nothing_more_is_written(
    tiny_model: VideoLLM, tmp_path: Path
) -> None:
    engine, streams = _engine(tiny_model, "always"), [STREAM]
    _show(engine, 10)
    keeping = _keeping(engine, tmp_path)
    keeping._streams = lambda: streams
    await _stopped(keeping)
    assert len(_left(tmp_path)) == 2
    late = keeping._host._snapshot("past", tmp_path, STREAM)
    assert late is not None
    streams.clear()
    assert await keeping._host.close(STREAM) == []
    await keeping.forget(STREAM)
    await _stopped(keeping)
    assert _left(tmp_path) == []
    keeping._host._write(STREAM, late)  # a save that had begun before
    assert _left(tmp_path) == []


async def test_what_a_removed_stream_left_goes_when_it_is_too_old(
    tiny_model: VideoLLM, tmp_path: Path
) -> None:
    engine = _engine(tiny_model, "always", max_age=100.0)
    _show(engine, 10)
    await _stopped(_keeping(engine, tmp_path))
    manifest = archive_file.path_of(tmp_path, STREAM) / "manifest.safetensors"
    os.utime(manifest, (-50, -50))
    await _keeping(engine, tmp_path, "other").restore()
    assert len(_left(tmp_path)) == 2
    os.utime(manifest, (-200, -200))
    await _keeping(engine, tmp_path, STREAM).restore()
    assert len(_left(tmp_path)) == 2
    os.utime(manifest, (-200, -200))
    await _keeping(engine, tmp_path, "other").restore()
    assert _left(tmp_path) == []


async def test_where_nothing_is_to_be_kept_nothing_stays_saved(
    tiny_model: VideoLLM, tmp_path: Path
) -> None:
    engine = _engine(tiny_model, "always")
    _show(engine, 10)
    await _stopped(_keeping(engine, tmp_path))
    await _keeping(_engine(tiny_model, "never"), tmp_path).restore()
    assert not archive_file.path_of(tmp_path, STREAM).exists()


def test_answers_that_were_given_are_remembered_over_a_restart(
    tiny_model: VideoLLM, tmp_path: Path
) -> None:
    engine = _engine(tiny_model, "auto")
    _show(engine, 4)
    engine.ask(Question("q", STREAM, "what is there?", 0.0, 6, query="scene"))
    [answer] = _run(engine)
    assert isinstance(answer, Answer)
    saved = engine.sessions.saved_past(STREAM)
    assert saved is not None
    archive_file.write(tmp_path, saved)
    found = archive_file.read(tmp_path, STREAM)
    assert found is not None
    [event] = found.snapshot.events
    assert (event.query, event.answer, event.until) == ("scene", answer.text, _clip(3).captured_at)


def _recalling(folder: Path, *streams: str) -> Service:
    return Service(
        folder,
        streams={
            name: {"source": f"scene://{place}", "fps": 4} for place, name in enumerate(streams)
        },
        reducer={"name": "none"},  # so that the memory is full within seconds
        memory={"window_tokens": 512, "recall": {"when": "auto"}},
        state={"dir": str(folder / "state"), "save_every": 1},
    )


@pytest.mark.slow
def test_a_killed_service_recalls_what_it_saved_and_deletes_it_with_its_stream(
    tmp_path: Path,
) -> None:
    state = tmp_path / "state"

    def recalled(service: Service) -> Any:
        asked = {"stream": "cam", "question": "what was there?", "recall": "always"}
        reply = service.http.post("/api/v1/ask", json=asked)
        told = reply.json() if reply.status_code == 200 else None
        return told if told and told["tokens"]["recalled"] else None

    def windows() -> int:
        with suppress(OSError):
            manifest = state / "cam.past" / "manifest.safetensors"
            if manifest.exists():
                found = tensor_file.read(manifest)
                return 0 if found is None else len(found.tensors["counts"])
        return 0

    with _recalling(tmp_path, "cam", "yard") as service:
        began = until(lambda: recalled(service), "something is recalled")["window"][0]
        until(lambda: windows() > 4, "a past is saved")
        service.stop(signal.SIGKILL)
    killed = time.time()
    with _recalling(tmp_path, "cam", "yard") as service:
        assert "stream cam: its past is back" in service.log.read_text()
        told = until(lambda: recalled(service), "something is recalled again")
        assert began - 1 < told["window"][0] < killed
        without = _recalling(tmp_path, "yard")
        without.http.close()
        assert service.http.post("/api/v1/config/reload").status_code == 200
        left = until(
            lambda: not [path for path in state.iterdir() if path.name.startswith("cam.")],
            "nothing of the stream is left",
        )
        assert left
        assert {path.name for path in state.iterdir()} >= {"yard.safetensors", "yard.past"}
