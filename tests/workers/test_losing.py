"""A device that fails for ever is told: its streams stall with the reason. Where it is lost for good, all ends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stream_sttm.config.settings import MemorySettings, Settings
from stream_sttm.engine.engine import Engine
from stream_sttm.errors import DeviceLost, StateError
from stream_sttm.models import load_model
from stream_sttm.queries.standing import StandingQueries
from stream_sttm.types import Clip, StreamState, StreamStatus
from tests.support.answers import until
from tests.workers.test_analysis import LIMITS, _clip
from workers.analysis import LOST_IN_A_ROW, Analysis
from workers.channel import Channel
from workers.engine_host import EngineHost
from workers.service import LocalService

STREAMS = {name: {"source": "scene://hall"} for name in ("door", "yard")}
LOST = "CUDA error: an illegal memory access was encountered"


@dataclass
class Watched:
    """A service and an analysis over an engine of which the test decides whether it fails."""

    service: LocalService
    engine: Engine
    clips: dict[str, Channel[Clip]]
    analysis: Analysis
    task: asyncio.Task[None]
    count: int = 0

    async def show(self, stream: str, count: int) -> None:
        for _ in range(count):
            self.count += 1
            await self.clips[stream].send(_clip(stream, self.count))
        await until(lambda: self.task.done() or self._is_taken(stream))

    def _is_taken(self, stream: str) -> bool:
        return not len(self.clips[stream]) and self.analysis._taken[stream].is_set()

    def state(self, stream: str) -> tuple[StreamState, str]:
        status = next(one for one in self.service.streams() if one.stream == stream)
        return status.state, status.reason


@asynccontextmanager
async def _watched() -> AsyncIterator[Watched]:
    service = LocalService(Settings.model_validate({"streams": STREAMS}))
    engine = Engine(load_model("demo"), memory=MemorySettings(), answering=LIMITS)
    clips: dict[str, Channel[Clip]] = {name: Channel(2) for name in STREAMS}
    for name in STREAMS:
        engine.open(name, fps=2)
        service.report(StreamStatus(name, StreamState.ONLINE, 1.0))
    with ThreadPoolExecutor(1) as thread:
        analysis = Analysis(
            EngineHost(engine, thread),
            StandingQueries({}, LIMITS),
            deliver=service.deliver,
            on_losing=service.keep_losses,
        )
        service.started(analysis)
        task = asyncio.create_task(analysis.run(clips))
        try:
            yield Watched(service, engine, clips, analysis, task)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _fail(words: str) -> Any:
    def fail(*_: object) -> Any:
        raise RuntimeError(words)

    return fail


async def _told(service: LocalService) -> list[StreamState]:
    """The states of the door that sinks were given so far."""
    states = []
    while len(service.outbox):
        item = await service.outbox.receive()
        if isinstance(item, StreamStatus) and item.stream == "door":
            states.append(item.state)
    return states


async def test_a_stream_that_loses_every_window_is_stalled_with_the_reason_and_not_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with _watched() as watched:
        service = watched.service
        await watched.show("door", 1)
        assert service.readiness() == (True, "ready")
        with monkeypatch.context() as patch:
            patch.setattr(watched.engine.model, "encode", _fail("the fan stands still"))
            await watched.show("door", LOST_IN_A_ROW - 1)
            assert watched.state("door") == (StreamState.ONLINE, "")
            await watched.show("door", 3)
            reason = "every window is lost: the model failed: the fan stands still"
            assert watched.state("door") == (StreamState.STALLED, reason)
            assert watched.state("yard") == (StreamState.ONLINE, "")
            assert service.readiness() == (False, f"stream 'door': {reason}")
            assert await _told(service) == [StreamState.ONLINE, StreamState.STALLED]
            service.report(StreamStatus("door", StreamState.OFFLINE, 2.0, "unplugged"))
            assert watched.state("door") == (StreamState.OFFLINE, "unplugged")
            assert service.readiness() == (True, "ready"), "nothing is lost of what is not there"
            service.report(StreamStatus("door", StreamState.ONLINE, 3.0))
            assert watched.state("door") == (StreamState.STALLED, reason)
        await watched.show("door", 1)
        assert watched.state("door") == (StreamState.ONLINE, "")
        assert service.readiness() == (True, "ready")
        offline, stalled, online = await _told(service)
        assert (offline, stalled, online) == (
            StreamState.OFFLINE,
            StreamState.STALLED,
            StreamState.ONLINE,
        )


async def test_a_lost_device_ends_the_analysis_with_an_error_and_the_memories_can_be_saved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with _watched() as watched:
        await watched.show("door", 1)
        with monkeypatch.context() as patch:
            patch.setattr(watched.engine.model, "encode", _fail(LOST))
            await watched.show("yard", 1)
        [error] = (await asyncio.gather(watched.task, return_exceptions=True))[0].exceptions  # type: ignore[union-attr]
        assert isinstance(error, DeviceLost)
        assert LOST in str(error)
        with ThreadPoolExecutor(1) as thread:
            host = EngineHost(watched.engine, thread)
            assert await host.save("memory", tmp_path, "door")
            session = watched.engine.sessions.of("door")
            monkeypatch.setattr(session, "saved", _fail(LOST))
            with pytest.raises(StateError, match="the memory of stream 'door' can't be read"):
                await host.save("memory", tmp_path, "door")


PROGRAM = """
import sys
from stream_sttm.engine import vision
from workers import cli

pixels, calls = vision._pixels, []

def failing(*arguments):
    calls.append(1)
    if len(calls) > 3:
        raise RuntimeError("CUDA error: device-side assert triggered")
    return pixels(*arguments)

vision._pixels = failing
sys.exit(cli.main(["serve", "--config", sys.argv[1], "--port", "0"]))
"""


def test_a_lost_device_ends_the_service_with_an_error_after_saving_what_can_be_saved(
    tmp_path: Path,
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"state: {{dir: {tmp_path / 'state'}}}\nstore: {{path: {tmp_path / 'answers.db'}}}\n"
        "streams: {hall: {source: 'scene://hall', max_still: 0}}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(config)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("stream-sttm: the device does nothing more for this process")
    assert "device-side assert" in last
    assert (tmp_path / "state" / "hall.safetensors").is_file()
