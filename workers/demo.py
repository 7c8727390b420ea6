"""The demo: the whole service with a drawn camera, and the truth printed beside every answer.

The camera runs in a process of its own and sends WebRTC. The service reads it, answers standing queries and publishes
them on MQTT. A plain MQTT client prints what arrives. Now and then a question is asked over HTTP. Nothing here looks
into the service: what is printed came over the network.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiomqtt
import httpx

from stream_sttm import urls
from stream_sttm.config.settings import Settings
from stream_sttm.errors import ConfigError, SinkError, SourceUnavailable
from stream_sttm.scene.questions import worded
from stream_sttm.scene.truth import KINDS, NAMES, SHAPE_KINDS, UNADDRESSED
from stream_sttm.sources.scene import Scene
from workers import local

STREAM, PREFIX = "scene", "demo"
ASK_EVERY = 4.0  # seconds between two questions over HTTP
WAIT = 60.0  # seconds for the camera and the service to start
_COLUMNS = "{:>7}  {:<4} {:<37} {:<38} {:<38} {:<5} {:>10} {:>7}"


@dataclass(slots=True)
class Tally:
    """Counts of the answers so far. Only answers with a clear truth count as true or false."""

    started: float = field(default_factory=time.monotonic)
    by: dict[str, int] = field(default_factory=lambda: {"mqtt": 0, "http": 0})
    clear: int = 0
    true: int = 0
    latencies: list[float] = field(default_factory=list)
    tokens: tuple[int, int] = (0, 0)

    def add(self, way: str, answer: dict[str, Any], truth: str | None) -> None:
        """Count one answer and print it."""
        self.by[way] += 1
        self.clear += truth is not None
        is_true = truth is not None and answer["answer"] == truth
        self.true += is_true
        self.latencies.append(answer["event_to_answer_ms"])
        before, after = answer["tokens"]["visual_before_merge"], answer["tokens"]["visual"]
        self.tokens = (self.tokens[0] + before, self.tokens[1] + after)
        verdict = "" if truth is None else "true" if is_true else "FALSE"
        _say(
            f"{time.monotonic() - self.started:.1f} s",
            way,
            answer["question"],
            answer["answer"],
            truth or "(not clear)",
            verdict,
            f"{before} -> {after}",
            f"{answer['event_to_answer_ms']:.0f} ms",
        )

    def summary(self) -> str:
        """Return one line over the whole run."""
        if not self.latencies:
            return "demo: no answers"
        before, after = self.tokens
        return (
            f"demo: {time.monotonic() - self.started:.0f} s, {self.by['mqtt']} answers over MQTT and "
            f"{self.by['http']} over HTTP, {self.true} of {self.clear} with a clear truth true, "
            f"event to answer median {statistics.median(self.latencies):.0f} ms, "
            f"visual tokens kept {after / max(1, before):.0%}"
        )


async def run(*, seconds: float | None, mqtt: str | None, port: int, seed: int) -> int:
    """Run the demo for `seconds`, or until cancelled. Returns 0 where answers came over both MQTT and HTTP, else 1."""
    tally, truth = Tally(), _Truth(Scene(seed))
    try:
        async with (
            _camera(seed) as (camera, epoch),
            _broker(mqtt) as broker,
            _service(_configuration(camera, broker, truth.standing), port) as page,
        ):
            truth.epoch = epoch
            print(f"camera {camera} · broker {urls.mask(broker)} · page {page}")
            _say("time", "by", "question", "answer", "truth", "", "tokens", "latency")
            tally.started = time.monotonic()
            with contextlib.suppress(TimeoutError):  # --seconds are over
                async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
                    group.create_task(_listen(broker, truth, tally), name="listen")
                    group.create_task(_ask(page, truth, tally), name="ask")
    finally:
        print(tally.summary(), flush=True)
    return 0 if all(tally.by.values()) else 1


class _Truth:
    """The truth in the camera's scene at the end of an answer's span."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.epoch = scene, 0.0
        colours = [thing.colour for at in (5.0, 25.0, 45.0) for thing in scene.objects_at(at)]
        # Standing queries by name: the kind of question and what it is about. The last one's answer changes.
        self.standing: dict[str, tuple[str, str | None]] = {
            "objects": ("list", None),
            "alarm": ("alarm", colours[-1] if colours else "red"),
        }

    def of(self, answer: dict[str, Any], kind: str, subject: str | None = None) -> str | None:
        start, end = (at - self.epoch for at in answer["window"])
        return self.scene.truth(kind, start, end, subject=subject)

    def something_to_ask(self, rng: random.Random) -> tuple[str, str | None]:
        """Choose a kind of question and its subject: in view now, a while ago, or never."""
        now = time.time() - self.epoch
        things = self.scene.things(now - 25.0, now - 1.0)
        kind = rng.choice(KINDS)
        if kind in UNADDRESSED:
            return kind, None
        shown = [thing.name for thing in things]
        name = rng.choice(shown) if shown and rng.random() < 0.7 else rng.choice(NAMES)
        colour, shape = name.split()
        return kind, colour if kind == "alarm" else shape if kind in SHAPE_KINDS else name


async def _listen(broker: str, truth: _Truth, tally: Tally) -> None:
    try:
        await _read(broker, truth, tally)
    except aiomqtt.MqttError as error:
        raise SinkError(
            f"broker {urls.mask(broker)}: {urls.scrub(str(error), broker)}; check --mqtt"
        ) from error


async def _read(broker: str, truth: _Truth, tally: Tally) -> None:
    parts = urlsplit(broker)
    async with aiomqtt.Client(
        parts.hostname or "127.0.0.1",
        parts.port or 1883,
        username=parts.username,
        password=parts.password,
    ) as client:
        prefix = parts.path.strip("/")
        answers = f"{prefix}/{STREAM}/query/+/answer"
        await client.subscribe(answers)
        async for message in client.messages:
            # The embedded broker was seen to deliver another topic, the service's availability.
            if not message.topic.matches(answers) or not isinstance(message.payload, bytes):
                continue
            answer = json.loads(message.payload)
            tally.add("mqtt", answer, truth.of(answer, *truth.standing[answer["query"]]))


async def _ask(page: str, truth: _Truth, tally: Tally) -> None:
    rng = random.Random(0)
    async with httpx.AsyncClient(base_url=page, timeout=30) as client:
        while True:
            await asyncio.sleep(ASK_EVERY)
            kind, subject = truth.something_to_ask(rng)
            question = worded(kind, subject)
            reply = await client.post("/api/v1/ask", json={"stream": STREAM, "question": question})
            if reply.is_success:
                answer = reply.json()
                tally.add("http", answer, truth.of(answer, kind, subject))
            else:
                print(f"over HTTP: {reply.json().get('error', reply.status_code)}")


@asynccontextmanager
async def _camera(seed: int) -> AsyncIterator[tuple[str, float]]:
    """Run the drawn camera in a process of its own. Yields its URL and the wall clock at which its scene began."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "stream_sttm.demo.camera",
        "--seed",
        str(seed),
        stdout=asyncio.subprocess.PIPE,
        stdin=asyncio.subprocess.PIPE,  # closed with us, which ends it whatever happens here
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(WAIT):
            line = await process.stdout.readline()
        if not line:
            raise SourceUnavailable("the demo's camera did not start; its own message stands above")
        started = json.loads(line)
        yield started["url"], started["epoch"]
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@asynccontextmanager
async def _broker(given: str | None) -> AsyncIterator[str]:
    """Yield the URL of the broker that was given, or of one embedded here on a free port."""
    if given is not None:
        if urls.split(given).scheme not in ("mqtt", "mqtts"):
            raise ConfigError(
                f"--mqtt {urls.mask(given)}: not a broker; it looks like mqtt://host:1883"
            )
        yield given if urlsplit(given).path.strip("/") else f"{given.rstrip('/')}/{PREFIX}"
        return
    from amqtt.broker import Broker

    port = _free_port()
    broker = Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
            "plugins": {
                "amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}
            },
        }
    )
    await broker.start()
    try:
        yield f"mqtt://127.0.0.1:{port}/{PREFIX}"
    finally:
        await broker.shutdown()


@asynccontextmanager
async def _service(configuration: dict[str, Any], port: int) -> AsyncIterator[str]:
    """Run the real service. Yields its address once it is ready to answer."""
    listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    with tempfile.TemporaryDirectory() as folder:
        store = {"path": os.path.join(folder, "answers.db")}
        settings = Settings(**configuration, http={"port": port}, store=store)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(
                local.run(settings, ready=listening.set_result, is_drawn=True), name="service"
            )
            await asyncio.wait((task, listening), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return  # the group raises why
            page = f"http://127.0.0.1:{listening.result()}"
            async with httpx.AsyncClient(base_url=page) as client, asyncio.timeout(WAIT):
                while (await client.get("/v1/health/ready")).status_code != 200:  # noqa: ASYNC110 - it is a poll
                    await asyncio.sleep(0.1)
            yield page
            task.cancel()


def _configuration(
    camera: str, broker: str, standing: dict[str, tuple[str, str | None]]
) -> dict[str, Any]:
    queries = {
        name: {"streams": [STREAM], "ask": worded(*asked), "every": 2, "announce": "always"}
        for name, asked in standing.items()
    }
    return {
        "streams": {STREAM: {"source": camera, "fps": 2}},
        "queries": queries,
        "sinks": [broker],
    }


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _say(*cells: str) -> None:
    print(_COLUMNS.format(*cells).rstrip(), flush=True)
