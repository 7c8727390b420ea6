"""Webhooks against a real server: signed, tried again, buried when hopeless, and a hanging one delays nobody."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import stat
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from stream_sttm.api.feed import Feed
from stream_sttm.errors import ConfigError, SinkError, SinkRefused
from stream_sttm.sinks import open_sink
from stream_sttm.sinks.webhook import MAX_LETTERS, MAX_RETRY_AFTER, WebhookSink, _retry_after
from stream_sttm.storage.answers import AnswerStore
from tests.support.answers import make_answer, make_event, make_status, until
from workers import delivery, gateway
from workers.channel import Channel
from workers.durable_queue import Limits
from workers.outbox import Outbox

SECRET = "hunter2 ünd/more#"
SPELT = "hunter2%20%C3%BCnd%2Fmore%23"


@dataclass
class Hooks:
    """A server that keeps what is posted to it and answers as it is told."""

    port: int = 0
    posts: list[tuple[dict[str, Any], dict[str, str], bytes]] = field(default_factory=list)
    answers: Callable[[int], Response] = lambda _: Response(status_code=204)
    hangs: bool = False

    async def take(self, request: Request) -> Response:
        body = await request.body()
        self.posts.append((json.loads(body), dict(request.headers), body))
        if self.hangs:
            await asyncio.Event().wait()
        return self.answers(len(self.posts))

    def sink(self, options: str = "", login: str = "") -> WebhookSink:
        sink = open_sink(f"http://{login}127.0.0.1:{self.port}/T0KEN/x?token=T0KEN#{options}")
        assert isinstance(sink, WebhookSink)
        return sink

    @property
    def ids(self) -> list[str]:
        return [body["id"] for body, _, _ in self.posts]


@pytest.fixture
async def hooks() -> AsyncIterator[Hooks]:
    one = Hooks()
    bound: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    app = Starlette(routes=[Route("/{path:path}", one.take, methods=["POST", "GET"])])
    task = asyncio.create_task(gateway.run(app, "127.0.0.1", 0, ready=bound.set_result))
    one.port = await bound
    yield one
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def letters(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def buried(sink: WebhookSink, result: str) -> float:
    labels = {"sink": sink.name, "result": result}
    return REGISTRY.get_sample_value("stream_sttm_dead_letters_total", labels) or 0.0


async def test_what_is_posted_can_be_checked_by_its_signature(hooks: Hooks) -> None:
    async with hooks.sink(f"secret={SPELT}") as sink:
        await sink.send(make_answer("da ist jemand: ü", number=7))
        await sink.send_event(make_event(number=8))
        await sink.report(make_status("door"))
    kinds = [(body["type"], body.get("id", body["stream"])) for body, _, _ in hooks.posts]
    assert kinds == [("answer", "q7"), ("event", "e8"), ("status", "door")]
    for _, headers, body in hooks.posts:
        at = headers["x-timestamp"]
        assert abs(time.time() - int(at)) < 60
        expected = hmac.new(SECRET.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
        assert headers["x-signature"] == f"sha256={expected}"
        assert headers["content-type"] == "application/json"
    assert hooks.posts[0][0]["answer"] == "da ist jemand: ü"


async def test_only_what_is_wanted_is_posted_and_nothing_is_signed_without_a_secret(
    hooks: Hooks,
) -> None:
    async with hooks.sink("send=events", login="user:p%40ss@") as sink:
        await sink.send(make_answer())
        await sink.report(make_status())
        await sink.send_event(make_event())
    ((body, headers, _),) = hooks.posts
    assert body["type"] == "event"
    assert "x-signature" not in headers
    assert headers["authorization"] == "Basic dXNlcjpwQHNz"


async def test_a_redirect_is_not_followed(hooks: Hooks, tmp_path: Path) -> None:
    hooks.answers = lambda _: RedirectResponse("/elsewhere", 307)
    file = tmp_path / "letters.jsonl"
    async with hooks.sink(f"dead_letters={file}") as sink:
        with pytest.raises(SinkRefused, match="redirects are not followed"):
            await sink.send(make_answer(number=1))
    assert len(hooks.posts) == 1
    (letter,) = letters(file)
    assert letter["body"]["id"] == "q1"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_what_fails_too_often_is_a_dead_letter_and_the_next_is_tried_anew(
    hooks: Hooks, tmp_path: Path
) -> None:
    hooks.answers = lambda number: Response(status_code=500 if number <= 3 else 200)
    file = tmp_path / "letters.jsonl"
    async with hooks.sink(f"attempts=3&dead_letters={file}") as sink:
        before = buried(sink, "kept")
        for _ in range(2):
            with pytest.raises(SinkError, match="answered 500") as raised:
                await sink.send(make_answer(number=1))
            assert not isinstance(raised.value, SinkRefused)
        with pytest.raises(SinkRefused, match="answered 500, 3 times"):
            await sink.send(make_answer(number=1))
        await sink.send(make_answer(number=2))
        assert buried(sink, "kept") == before + 1
    assert [letter["body"]["id"] for letter in letters(file)] == ["q1"]
    assert hooks.ids == ["q1", "q1", "q1", "q2"]


async def test_a_success_forgets_the_failures_before_it(hooks: Hooks) -> None:
    hooks.answers = lambda number: Response(status_code=500 if number % 2 else 200)
    async with hooks.sink("attempts=2") as sink:
        for _ in range(3):
            with pytest.raises(SinkError):
                await sink.send(make_answer(number=1))
            await sink.send(make_answer(number=1))


@pytest.mark.parametrize("status", [400, 401, 404, 410, 413])
async def test_a_refusal_is_final(hooks: Hooks, status: int) -> None:
    hooks.answers = lambda _: Response(status_code=status)
    async with hooks.sink() as sink:
        before = buried(sink, "lost")
        with pytest.raises(SinkRefused, match=f"answered {status}"):
            await sink.send(make_answer())
        assert buried(sink, "lost") == before + 1


@pytest.mark.parametrize("status", [408, 425, 429, 500])
async def test_trouble_that_may_pass_is_not(hooks: Hooks, status: int) -> None:
    hooks.answers = lambda _: Response(status_code=status)
    async with hooks.sink() as sink:
        with pytest.raises(SinkError) as raised:
            await sink.send(make_answer())
        assert not isinstance(raised.value, SinkRefused)
        with pytest.raises(SinkRefused):  # a state is not worth waiting for
            await sink.report(make_status())


@pytest.mark.parametrize("status", [502, 503, 504, 522])
async def test_a_proxy_that_says_that_nobody_is_there_uses_up_no_attempts(
    hooks: Hooks, status: int
) -> None:
    hooks.answers = lambda number: Response(status_code=status if number <= 6 else 200)
    async with hooks.sink("attempts=2") as sink:
        lost = buried(sink, "lost")
        for _ in range(5):
            with pytest.raises(SinkError, match=f"answered {status}") as raised:
                await sink.send(make_answer(number=1))
            assert not isinstance(raised.value, SinkRefused)
        with pytest.raises(SinkError) as raised:  # the newest state waits too
            await sink.report(make_status())
        assert not isinstance(raised.value, SinkRefused)
        await sink.send(make_answer(number=1))
        assert buried(sink, "lost") == lost


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("as_date", [False, True])
async def test_retry_after_is_kept_in_order_and_loses_nothing(
    hooks: Hooks, status: int, as_date: bool
) -> None:
    def busy() -> Response:
        wait = formatdate(time.time() + 2, usegmt=True) if as_date else "1"
        return Response(status_code=status, headers={"Retry-After": wait})

    at: list[float] = []

    def answer(number: int) -> Response:
        at.append(time.monotonic())
        return busy() if number == 1 else Response(status_code=204)

    hooks.answers = answer
    limits = Limits(first_pause=0.01, longest_pause=0.05)
    sink = hooks.sink("attempts=1")
    box = Outbox(sink, limits)
    async with sink:
        task = asyncio.create_task(box.run())
        for number in range(3):
            box.put(make_answer(number=number))
        await until(lambda: len(hooks.posts) == 1)
        box.put(make_status())  # goes ahead of answers, and must not break the wait either
        await until(lambda: len(hooks.posts) == 5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert at[1] - at[0] >= 0.95
    assert [body.get("id", body["type"]) for body, _, _ in hooks.posts] == [
        "q0", "status", "q0", "q1", "q2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        (" 7 ", 7.0),
        ("600", 600.0),
        ("601", MAX_RETRY_AFTER),
        ("9" * 5000, MAX_RETRY_AFTER),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER),
        ("", None),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("²", None),
        ("Fri, 99 Dec 1999 99:59:59 GMT", None),
    ],
)
def test_retry_after_is_bounded_and_garbage_is_none(text: str, seconds: float | None) -> None:
    reply = httpx.Response(503, headers={"Retry-After": text.encode()})
    assert _retry_after(reply) == seconds


def test_a_date_to_retry_after_is_by_the_clock_of_who_says_it() -> None:
    headers = {
        "Date": "Fri, 31 Dec 1999 23:59:00 GMT",
        "Retry-After": "Fri, 31 Dec 1999 23:59:45 GMT",
    }
    assert _retry_after(httpx.Response(429, headers=headers)) == 45.0


async def test_nobody_there_is_waited_for_however_often() -> None:
    sink = open_sink("http://user:hunter2@127.0.0.1:9/hunter2#attempts=1&secret=hunter2")
    async with sink:
        for _ in range(3):
            with pytest.raises(SinkError, match="can't connect") as raised:
                await sink.send(make_answer())
            assert not isinstance(raised.value, SinkRefused)
            assert "hunter2" not in str(raised.value)
    assert "hunter2" not in sink.name + repr(sink)


async def test_an_endless_answer_is_cut_off(hooks: Hooks) -> None:
    hooks.answers = lambda _: Response(b"x" * 10_000_000)
    async with hooks.sink() as sink:
        for number in range(3):
            await sink.send(make_answer(number=number))
    assert hooks.ids == ["q0", "q1", "q2"]


async def test_a_webhook_that_hangs_delays_nobody_and_can_be_left(hooks: Hooks) -> None:
    hanging = hooks.sink("timeout=0.2&attempts=1000")
    other = Hooks()

    class Quick(WebhookSink):
        async def send(self, answer: Any) -> None:
            other.posts.append(({"id": answer.question.id}, {}, b""))

    hooks.hangs = True
    quick = Quick(f"http://127.0.0.1:{hooks.port}/quick")
    channel: Channel[delivery.Outgoing] = Channel(100)
    limits = Limits(first_pause=0.001, longest_pause=0.01, drain=0.1)
    with AnswerStore(":memory:") as store:
        work = delivery.run(
            channel, store=store, sinks=[hanging, quick], feed=Feed(), limits=limits
        )
        task = asyncio.create_task(work)
        for number in range(20):
            channel.offer(make_answer(number=number))
        await until(lambda: len(other.posts) == 20)
        await until(lambda: len(hooks.posts) >= 3)
        assert set(hooks.ids) == {"q0"}  # in order: the first is tried on
        hooks.hangs = False
        await until(lambda: "q19" in hooks.ids)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def burying(path: Path) -> AsyncIterator[WebhookSink]:
    sink = WebhookSink(f"http://127.0.0.1:9/#dead_letters={path}")
    async with sink:
        yield sink


async def test_dead_letters_are_bounded(tmp_path: Path) -> None:
    file = tmp_path / "letters.jsonl"
    file.write_bytes(b"x" * (MAX_LETTERS + 1))
    async with burying(file) as sink:
        await sink._keep_dead_letter({"id": 1}, "no use")
    assert len(letters(file)) == 1
    assert (tmp_path / "letters.jsonl.1").stat().st_size == MAX_LETTERS + 1


async def test_dead_letters_that_can_not_be_written_are_lost_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with burying(tmp_path / "none" / "letters.jsonl") as sink:
        before = buried(sink, "lost")
        await sink._keep_dead_letter({"id": 1}, "no use")
        assert buried(sink, "lost") == before + 1
    assert "No such file" in caplog.text


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("http:///x", "names no host"),
        ("http://host/#sekret=hunter2", "did you mean 'secret'"),
        ("http://host/#hunter2", "no such option"),
        ("http://host/#send=all", "send must be one or more of"),
        ("http://host/#send=", "send must be one or more of"),
        ("http://host/#attempts=0", "attempts must be a number"),
        ("http://host/#timeout=hunter2", "timeout must be a number"),
        ("http://host/#timeout=nan", "timeout must be a number"),
        ("http://host/\x01", "characters that no URL has"),
    ],
)
def test_what_can_not_be_is_told_in_a_line(url: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line) as raised:
        open_sink(url)
    assert "hunter2" not in str(raised.value)


def test_two_webhooks_of_one_host_are_told_apart_without_telling_their_paths() -> None:
    names = {open_sink(f"https://hooks.example/{path}").name for path in ("T0KEN", "SECRET")}
    assert len(names) == 2
    assert all(re.fullmatch(r"hooks\.example:443/~[0-9a-f]{6}", name) for name in names)
