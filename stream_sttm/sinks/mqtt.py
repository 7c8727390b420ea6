"""Answers and stream states on MQTT: `mqtt://user:password@host:1883/prefix`, or mqtts:// with TLS.

One background task keeps the connection, for ever; a broker that is down is a normal state. `send` and `report` wait
a while for it and for the broker's acknowledgement. Retained topics are told anew on every connect. Knows nothing of
queues, retries or drops (workers/delivery.py) nor of what a question means.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import SplitResult, parse_qs, unquote
from uuid import uuid4

import aiomqtt

from stream_sttm import metrics, urls
from stream_sttm.errors import ConfigError, SinkError, SinkRefused
from stream_sttm.types import Answer, Event, StreamStatus

DEFAULT_PREFIX = "stream_sttm"
MAX_PREFIX_CHARS = 200
MAX_PAYLOAD_BYTES = 256 * 1024
MAX_STATE_CHARS = 255  # what Home Assistant takes as a state
_DEFAULT_PORT = {"mqtt": 1883, "mqtts": 8883}
_KEEPALIVE = 15  # seconds; a broker that vanished is noticed, and our last will sent, soon after
_CONNACK = 5.0  # seconds from connection to the broker's word that we are welcome
_BACKOFF = (0.5, 30.0)  # seconds between attempts to connect: the first and the longest
_DENIED = (4, 5, 134, 135)  # CONNACK codes of MQTT 3.1.1 and 5 for a wrong user or password
_GOODBYE = 1.0  # seconds to say `stopped` in

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class MqttSink:
    """One broker and topic prefix; `timeout` is how many seconds connection and acknowledgement may take."""

    url: str = field(repr=False)
    timeout: float = 10.0

    def __post_init__(self) -> None:
        parts = urls.split(self.url)
        self._prefix = _prefix(parts)
        self._options = _connection(parts)
        host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname
        self.name = f"{host}:{self._options['port']}"
        self._retained: dict[str, str] = {}
        self._link: _Link | None = None
        self._linked = asyncio.Event()
        self._told = ""  # the last state of the connection that was logged
        metrics.MQTT_CONNECTED.labels(self.name).set(0)

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        group = await self._stack.enter_async_context(asyncio.TaskGroup())
        self._connection = group.create_task(self._stay_connected(), name=f"mqtt[{self.name}]")
        return self

    async def __aexit__(self, *error: Any) -> None:
        self._connection.cancel()
        await self._stack.__aexit__(*error)

    async def send(self, answer: Answer) -> None:
        """Publish `answer`, and where it is a standing query's, its short state, with QoS 1."""
        question = answer.question
        if question.query is None:
            topic = f"{self._prefix}/{question.stream}/ask/{question.id}/answer"
        else:
            root = f"{self._prefix}/{question.stream}/query/{question.query}"
            topic = f"{root}/answer"
            # first, for it may be told twice without harm if what follows has to be tried again
            await self._retain(f"{root}/state", _short(answer.text))
        link = await self._connected()
        payload = answer.as_dict(published_at=time.time())
        await link.publish(topic, json.dumps(payload, ensure_ascii=False))

    async def send_event(self, event: Event) -> None:
        """Publish what is told of `event`, with QoS 1."""
        link = await self._connected()
        payload = json.dumps(event.as_dict(published_at=time.time()), ensure_ascii=False)
        await link.publish(f"{self._prefix}/events", payload)

    async def report(self, status: StreamStatus) -> None:
        """Publish a stream's state and its details, retained, with QoS 1."""
        root = f"{self._prefix}/{status.stream}/status"
        attributes = json.dumps(status.as_dict(), ensure_ascii=False)
        # told on connecting, should this be too early
        self._retained[f"{root}/attributes"] = attributes
        await self._retain(root, status.state.value)
        await self._retain(f"{root}/attributes", attributes)

    async def _retain(self, topic: str, payload: str) -> None:
        link = await self._connected()
        self._retained[topic] = payload
        await link.publish(topic, payload, retain=True)

    async def _connected(self) -> _Link:
        """The connection, as soon as there is one; raises SinkError after `timeout` seconds without."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.timeout):
                await self._linked.wait()
        if self._link is None:
            raise SinkError(f"mqtt broker {self.name}: not connected")
        return self._link

    async def _stay_connected(self) -> None:
        first, longest = _BACKOFF
        pause = first
        while True:
            try:
                async with self._open() as link:
                    pause = first
                    await link.until_lost()
            except SinkError as error:
                self._tell(logging.WARNING, f"{error}; trying on")
            if self._connection.cancelling():  # the client library can swallow a cancellation
                raise asyncio.CancelledError
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(longest, pause * 2)

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[_Link]:
        """A connection that has said `online` and told what is retained; says `stopped` when cancelled."""
        available = f"{self._prefix}/available"
        will = aiomqtt.Will(available, "offline", qos=1, retain=True)
        async with _client(self.url, self.name, {**self._options, "will": will}) as client:
            link = _Link(client, self.name, self.timeout)
            try:
                await link.publish(available, "online", retain=True)
                for topic, payload in list(self._retained.items()):
                    await link.publish(topic, payload, retain=True)
                self._show(link)
                yield link
            except asyncio.CancelledError:
                with suppress(SinkError, TimeoutError):
                    async with asyncio.timeout(_GOODBYE):
                        await link.publish(available, "stopped", retain=True)
                raise
            finally:
                self._hide(link)

    def _show(self, link: _Link) -> None:
        """Let `send` and `report` use `link`."""
        self._link = link
        self._linked.set()
        metrics.MQTT_CONNECTED.labels(self.name).set(1)
        self._tell(logging.INFO, f"mqtt broker {self.name}: connected")

    def _hide(self, link: _Link) -> None:
        metrics.MQTT_CONNECTED.labels(self.name).set(0)
        self._linked.clear()
        self._link = None
        link.give_up()

    def _tell(self, level: int, state: str) -> None:
        """Log a state of the connection once, when it is entered."""
        if state != self._told:
            self._told = state
            _log.log(level, "%s", state)


class _Link:
    """A live connection; what is being published when it breaks fails at once instead of timing out."""

    def __init__(self, client: aiomqtt.Client, name: str, timeout: float) -> None:
        self._client = client
        self._name = name
        self._timeout = timeout
        self._deadlines: set[asyncio.Timeout] = set()
        self._watch: asyncio.Timeout | None = None

    async def publish(self, topic: str, payload: str, *, retain: bool = False) -> None:
        """Publish with QoS 1; returns on the broker's acknowledgement, raises SinkError without one."""
        content = payload.encode("utf-8", errors="replace")
        if len(content) > MAX_PAYLOAD_BYTES:
            raise SinkRefused(
                f"mqtt broker {self._name}: {topic} would take {len(content)} bytes;"
                f" at most {MAX_PAYLOAD_BYTES} are sent"
            )
        try:
            async with asyncio.timeout(self._timeout) as deadline:
                self._deadlines.add(deadline)
                try:
                    await self._client.publish(topic, content, 1, retain, timeout=float("inf"))
                finally:
                    self._deadlines.discard(deadline)
        except TimeoutError as error:
            if (
                self._watch is not None
            ):  # leave a silent broker, or each new try would pile up behind
                self._watch.reschedule(0)
            raise SinkError(f"mqtt broker {self._name}: no acknowledgement") from error
        except (aiomqtt.MqttError, OSError) as error:
            raise SinkError(f"mqtt broker {self._name}: {_one_line(error)}") from error

    async def until_lost(self) -> None:
        """Raise SinkError when the connection breaks or an acknowledgement fails to come."""
        try:
            async with asyncio.timeout(None) as self._watch:
                async for _ in self._client.messages:
                    pass  # nothing is subscribed to; the iterator's end is what counts
        except (aiomqtt.MqttError, OSError) as error:  # TimeoutError is an OSError
            raise SinkError(f"mqtt broker {self._name}: connection lost") from error

    def give_up(self) -> None:
        """Fail what is being published now."""
        self._watch = None
        for deadline in self._deadlines:
            deadline.reschedule(0)


@asynccontextmanager
async def _client(url: str, name: str, options: dict[str, Any]) -> AsyncIterator[aiomqtt.Client]:
    """A connected client; raises SinkError with the reason, free of the password, where there is none."""
    identifier = f"stream-sttm-{uuid4().hex[:10]}"  # 22 characters: any broker takes 23
    _log.debug("mqtt broker %s: connecting", name)
    silent = _log.getChild("library")  # it would tell of every failed attempt; `_tell` does once
    silent.setLevel(logging.CRITICAL)
    client = aiomqtt.Client(
        **options, identifier=identifier, keepalive=_KEEPALIVE, timeout=_CONNACK, logger=silent
    )
    connecting = asyncio.create_task(client.__aenter__(), name=f"mqtt-connect[{name}]")
    try:
        await asyncio.shield(connecting)
    except asyncio.CancelledError:
        # the library connects in a thread that can't be stopped, but gives up within seconds
        with suppress(aiomqtt.MqttError, OSError):
            await connecting
            await client.__aexit__(None, None, None)
        _hang_up(client)
        raise
    except (aiomqtt.MqttError, OSError) as error:
        _hang_up(client)
        raise SinkError(f"mqtt broker {name}: {_explain(error, url)}") from error
    try:
        yield client
    finally:
        with suppress(aiomqtt.MqttError, OSError):
            await client.__aexit__(None, None, None)


def _hang_up(client: aiomqtt.Client) -> None:
    """End a failed attempt to connect: left half open, a slow broker would keep it, and our last will with it."""
    client._client.disconnect()  # noqa: SLF001 - there is no public way


def _prefix(parts: SplitResult) -> str:
    prefix = unquote(parts.path).strip("/") or DEFAULT_PREFIX
    if len(prefix) > MAX_PREFIX_CHARS or not prefix.isprintable():
        raise ConfigError(f"mqtt prefix: at most {MAX_PREFIX_CHARS} printable characters")
    if any(char in prefix for char in "+#") or "//" in prefix or prefix.startswith("$"):
        raise ConfigError(
            f"mqtt prefix {prefix!r}: '+', '#', '//' and a leading '$' are not allowed"
        )
    return prefix


def _connection(parts: SplitResult) -> dict[str, Any]:
    """The client's options from the URL; raises ConfigError for what it can't mean."""
    if not parts.hostname:
        raise ConfigError(
            f"{parts.scheme}:// names no host; write {parts.scheme}://HOST:PORT/PREFIX"
        )
    wanted = parse_qs(parts.query)
    if set(wanted) - {"ca"} or (wanted and parts.scheme != "mqtts"):
        raise ConfigError("an MQTT URL takes no options after '?', but mqtts:// ?ca=FILE")
    options: dict[str, Any] = {
        "hostname": parts.hostname,
        "port": parts.port or _DEFAULT_PORT[parts.scheme],
        "username": unquote(parts.username) if parts.username else None,
        "password": unquote(parts.password) if parts.password else None,
    }
    if parts.scheme == "mqtts":
        authority = wanted.get("ca", [None])[0]
        try:
            options["tls_context"] = ssl.create_default_context(cafile=authority)
        except OSError as error:
            raise ConfigError(f"mqtts://: can't read ca={authority}: {error.strerror}") from error
    return options


def _explain(error: Exception, url: str) -> str:
    code = getattr(getattr(error, "rc", None), "value", getattr(error, "rc", None))
    if isinstance(error, aiomqtt.exceptions.MqttConnectError) and code in _DENIED:
        return "user or password refused; check the sink's URL"
    if "timed out" in str(error).lower():
        return "can't connect: no answer; check host, port and firewall"
    return f"can't connect: {urls.scrub(_one_line(error), url)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_STATE_CHARS else line[: MAX_STATE_CHARS - 1] + "…"
