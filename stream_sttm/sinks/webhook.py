"""Post answers, events and stream states to a URL as JSON: `https://hooks.example/door#secret=${HOOK_SECRET}`.

Each POST is signed: `X-Signature` is `sha256=` and the hexadecimal HMAC-SHA256, under the secret, of `X-Timestamp`, a
dot and the body. The receiver answers 2xx once it has it. Redirects are not followed. A body that is refused, or that
fails `attempts` times while the receiver answers, is given up and appended to a file of dead letters. A receiver that
is not there, also by what a proxy before it says, is waited for. So is one that says `Retry-After`, which is not asked
before. Queues and pauses are in workers/outbox.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import os
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

import httpx

from stream_sttm import __version__, metrics, registry, urls
from stream_sttm.errors import ConfigError, SinkError, SinkRefused
from stream_sttm.types import Answer, Event, StreamStatus

KINDS = ("answers", "events", "states")
OPTIONS = ("secret", "send", "attempts", "timeout", "dead_letters")
MAX_REPLY = 64 * 1024  # bytes of a reply that are read, so that the connection can be used again
MAX_LETTERS = 16 * 1024 * 1024  # bytes of the file of dead letters, after which it is rotated
_AGAIN = (408, 425, 429)  # client errors that are worth trying again
_NOT_THERE = (502, 503, 504, 521, 522, 523, 524)  # what a proxy says of a server that is away
MAX_RETRY_AFTER = 600.0  # seconds that a receiver may have us wait
_DEFAULT_PORT = {"http": 80, "https": 443}

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class WebhookSink:
    """A URL to post to.

    Options after its '#': `secret`, `send` (answers,events,states), `attempts`, `timeout`, `dead_letters`.
    """

    url: str = field(repr=False)

    def __post_init__(self) -> None:
        self._target, _, fragment = self.url.partition("#")
        options = _options(fragment)
        parts = urls.split(self._target)
        if not parts.hostname:
            raise ConfigError(f"{parts.scheme}:// names no host; write {parts.scheme}://HOST/PATH")
        try:
            httpx.URL(self._target)
        except httpx.InvalidURL:
            raise ConfigError("a webhook's URL holds characters that no URL has") from None
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        # Many services have a secret in the path. A hash tells two webhooks of one host apart without it.
        path_hash = hashlib.sha256(self._target.encode()).hexdigest()[:6]
        self.name = f"{host}:{parts.port or _DEFAULT_PORT[parts.scheme]}/~{path_hash}"
        self._secret = options.get("secret", "").encode()
        self._kinds = _kinds(options.get("send"))
        self._attempts = int(_number(options, "attempts", 10, least=1))
        self._timeout = _number(options, "timeout", 10.0, least=0.1)
        letters = options.get("dead_letters")
        self._letters = Path(letters) if letters else None
        self._failed: tuple[str, int] = ("", 0)  # what failed last, and how often in a row
        self._not_before = 0.0  # monotonic, until which the receiver wants to be left alone
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        self._client = httpx.AsyncClient(
            timeout=self._timeout,
            follow_redirects=False,
            trust_env=False,
            limits=httpx.Limits(max_connections=2, keepalive_expiry=30),
            headers={"User-Agent": f"stream-sttm/{__version__}"},
        )
        for result in ("kept", "lost"):
            metrics.DEAD_LETTERS.labels(self.name, result)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def send(self, answer: Answer) -> None:
        """Post `answer`."""
        if "answers" in self._kinds:
            body = {"type": "answer", **answer.as_dict(published_at=time.time())}
            await self._deliver(answer.question.id, body)

    async def send_event(self, event: Event) -> None:
        """Post `event`."""
        if "events" in self._kinds:
            body = {"type": "event", **event.as_dict(published_at=time.time())}
            await self._deliver(f"{event.id}/{event.kind.value}/{event.updated_at}", body)

    async def report(self, status: StreamStatus) -> None:
        """Post a stream's state. One that is not taken is given up at once, because the next replaces it."""
        if "states" in self._kinds:
            try:
                await self._post({"type": "status", **status.as_dict()})
            except _PostFailed as error:
                raise SinkRefused(str(error)) from error

    async def _deliver(self, key: str, body: dict[str, Any]) -> None:
        """Post `body`. Raises SinkRefused once it is a dead letter."""
        try:
            await self._post(body)
        except SinkRefused as error:
            await self._keep_dead_letter(body, str(error))
            raise
        except _PostFailed as error:
            last, count = self._failed
            count = count + 1 if last == key else 1
            self._failed = (key, count)
            if count < self._attempts:
                raise
            await self._keep_dead_letter(body, str(error))
            raise SinkRefused(f"{error}, {count} times") from error
        self._failed = ("", 0)

    async def _post(self, body: dict[str, Any]) -> None:
        """Post once.

        Raises SinkError where nobody answers, _PostFailed where it fails, and SinkRefused where it always will.
        """
        assert self._client is not None
        if (wait := self._not_before - time.monotonic()) > 0:
            raise SinkError(f"webhook {self.name}: asked to be left alone for {wait:.0f} s more")
        content = json.dumps(body, ensure_ascii=False, allow_nan=False).encode(errors="replace")
        try:
            async with asyncio.timeout(self._timeout):
                request = self._client.stream(
                    "POST", self._target, content=content, headers=self._signed(content)
                )
                async with request as reply:
                    await _read_some(reply)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise SinkError(
                f"webhook {self.name}: can't connect: {self._scrubbed(error)}"
            ) from error
        except (TimeoutError, httpx.TimeoutException) as error:
            raise _PostFailed(f"webhook {self.name}: no answer in {self._timeout:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _PostFailed(f"webhook {self.name}: {self._scrubbed(error)}") from error
        self._judge(reply)

    def _judge(self, reply: httpx.Response) -> None:
        if reply.is_success:
            return
        line = f"webhook {self.name}: answered {reply.status_code}"
        if reply.is_redirect:
            raise SinkRefused(f"{line}: redirects are not followed; name the URL it leads to")
        if reply.is_client_error and reply.status_code not in _AGAIN:
            raise SinkRefused(line)
        wait = _retry_after(reply)
        if wait is not None:
            self._not_before = time.monotonic() + wait
        if wait is not None or reply.status_code in _NOT_THERE:
            raise SinkError(line)
        raise _PostFailed(line)

    def _signed(self, content: bytes) -> dict[str, str]:
        """Return the headers of a body, with its signature where there is a secret."""
        at = str(int(time.time()))
        headers = {"Content-Type": "application/json", "X-Timestamp": at}
        if self._secret:
            headers["X-Signature"] = signature(self._secret, at, content)
        return headers

    async def _keep_dead_letter(self, body: dict[str, Any], why: str) -> None:
        """Append what is given up to the file of dead letters, where there is one."""
        result = "lost"
        if self._letters is not None:
            letter = {"at": time.time(), "sink": self.name, "why": why, "body": body}
            try:
                await asyncio.to_thread(_append, self._letters, letter)
                result = "kept"
            except OSError as error:
                _log.error("dead letters %s: %s", self._letters, error.strerror)
        metrics.DEAD_LETTERS.labels(self.name, result).inc()
        self._failed = ("", 0)

    def _scrubbed(self, error: Exception) -> str:
        """Return a library's error as one line without the URL's secrets."""
        line = " ".join(str(error).split()) or type(error).__name__
        return urls.scrub(line, self.url)


class _PostFailed(SinkError):  # noqa: N818 - reads better where it is raised
    """The receiver answers but did not take it: worth trying again, though not for ever."""


def signature(secret: bytes, timestamp: str, body: bytes) -> str:
    """Return the `X-Signature` of a body sent at `timestamp`. Compare it with hmac.compare_digest."""
    return (
        f"sha256={hmac.new(secret, timestamp.encode() + b'.' + body, hashlib.sha256).hexdigest()}"
    )


def _retry_after(reply: httpx.Response) -> float | None:
    """Return the seconds that a reply asks to wait, bounded; None where it asks for none or for nothing readable."""
    text = reply.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        wait = float(text[:12])
    else:
        until, now = _date(text), _date(reply.headers.get("Date", ""))
        if until is None:
            return None
        wait = until - (time.time() if now is None else now)  # by the receiver's own clock
    return min(max(0.0, wait), MAX_RETRY_AFTER)


def _date(text: str) -> float | None:
    """Return the wall clock of an HTTP date, None where it is none."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


async def _read_some(reply: httpx.Response) -> None:
    """Read the reply up to MAX_REPLY. A longer one closes the connection."""
    size = 0
    async for part in reply.aiter_raw():
        size += len(part)
        if size > MAX_REPLY:
            return


def _append(path: Path, letter: dict[str, Any]) -> None:
    """Append a line to a file that only its owner may read. Blocks."""
    if path.exists() and path.stat().st_size > MAX_LETTERS:
        path.replace(path.with_name(f"{path.name}.1"))
    line = json.dumps(letter, ensure_ascii=False, allow_nan=False).encode(errors="replace")
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(handle, "ab") as file:
        file.write(line + b"\n")


def _options(fragment: str) -> dict[str, str]:
    """Parse the options after the '#', joined by '&' or '#'. Raises ConfigError for an unknown one."""
    options = {}
    for part in filter(None, fragment.replace("#", "&").split("&")):
        key, equals, value = part.partition("=")
        if not equals or key not in OPTIONS:
            word = key if key.isidentifier() else ""
            hint = registry.suggest(word, list(OPTIONS))
            raise ConfigError(f"a webhook has no such option behind its '#'{hint}")
        options[key] = unquote(value)
    return options


def _kinds(text: str | None) -> tuple[str, ...]:
    if text is None:
        return KINDS
    kinds = tuple(filter(None, text.split(",")))
    if not kinds or not set(kinds) <= set(KINDS):
        raise ConfigError(f"a webhook's send must be one or more of {', '.join(KINDS)}, by commas")
    return kinds


def _number(options: dict[str, str], key: str, default: float, *, least: float) -> float:
    try:
        number = float(options.get(key, default))
    except ValueError:
        number = -1.0
    if not least <= number <= 3600:
        raise ConfigError(f"a webhook's {key} must be a number from {least:g} to 3600")
    return number
