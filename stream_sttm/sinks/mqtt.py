"""Answers, events and states on MQTT, and the service's ear there: `mqtt://user:password@host:1883/prefix`.

One background task keeps the connection, for ever; a broker that is down is a normal state. Handing over waits a
while for it and for the broker's acknowledgement. Retained topics are told anew on every connect. What the URL means is
in mqtt_url.py, what is said in mqtt_topics.py and homeassistant.py, what is heard in mqtt_requests.py. Knows nothing
of queues, retries or drops (workers/outbox.py) nor of what a question means.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Self

from stream_sttm import metrics
from stream_sttm.errors import SinkError, SinkRefused
from stream_sttm.sinks import homeassistant
from stream_sttm.sinks.commands import Commands
from stream_sttm.sinks.mqtt_link import Link, connect
from stream_sttm.sinks.mqtt_message import Incoming, Message
from stream_sttm.sinks.mqtt_requests import Requests
from stream_sttm.sinks.mqtt_topics import OFFLINE, ONLINE, STOPPED, Topics, as_json, pairs
from stream_sttm.sinks.mqtt_url import parse
from stream_sttm.types import Answer, Event, StreamStatus

_BACKOFF = (0.5, 30.0)  # seconds between attempts to connect: the first and the longest
_LASTING = 5.0  # seconds after which a connection was a good one
_GOODBYE = 1.0  # seconds to say `stopped` in
_AT_ONCE = 200  # retained messages in flight
_TICK = 1.0  # seconds between two looks at what has changed
_HEARTBEAT = 60.0  # seconds between two reports of all that is well

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class MqttSink:
    """One broker and topic prefix; `timeout` is how many seconds connection and acknowledgement may take.

    With `commands` it also takes questions and commands, tells the service's numbers, and announces what there is to
    Home Assistant where the URL says so.
    """

    url: str = field(repr=False)
    timeout: float = 10.0
    commands: Commands | None = None

    def __post_init__(self) -> None:
        self._endpoint = parse(self.url)
        self.name = self._endpoint.name
        self._topics = Topics(self._endpoint.prefix)
        self._retained: dict[str, Message] = {}
        self._latency: dict[str, float] = {}  # of each stream's last answer, in ms
        self._link: Link | None = None
        self._linked = asyncio.Event()
        self._changed = asyncio.Event()
        self._is_asked_anew = False  # to tell everything
        self._told = ""  # the last state of the connection that was logged
        self._announcements: homeassistant.Announcements | None = None
        self._requests: Requests | None = None
        if self.commands is not None:
            discovery = self._endpoint.discovery
            foreign = () if discovery is None else (discovery,)
            self._requests = Requests(
                self._topics, self.commands, foreign=foreign, reply=self._reply, count=self._count
            )
            if discovery is not None:
                self._announcements = homeassistant.Announcements(self._endpoint)
        metrics.MQTT_CONNECTED.labels(self.name).set(0)

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        self._group = await self._stack.enter_async_context(asyncio.TaskGroup())
        self._connection = self._group.create_task(
            self._stay_connected(), name=f"mqtt[{self.name}]"
        )
        return self

    async def __aexit__(self, *error: Any) -> None:
        self._connection.cancel()
        if self._requests is not None:
            self._requests.stop()
        await self._stack.__aexit__(*error)

    async def send(self, answer: Answer) -> None:
        """Publish `answer`, and where it is a standing query's, its short state, with QoS 1."""
        await self._send_one(answer)

    async def send_event(self, event: Event) -> None:
        """Publish what is told of an event, with QoS 1."""
        await self._send_one(event)

    async def send_all(self, items: Sequence[Answer | Event]) -> list[SinkRefused | None]:
        """Publish in order, the next before the one before is acknowledged; what became of the first of them."""
        link, now = await self._connected(), time.time()
        messages: list[Message] = []
        counts = []
        kept: dict[str, Message] = {}
        for item in items:
            if isinstance(item, Answer):
                messages.append(self._topics.answer(item, published_at=now))
                kept |= {m.topic: m for m in self._topics.kept(item, published_at=now)}
                self._latency[item.question.stream] = round((now - item.captured_at) * 1000, 1)
            else:
                messages += self._topics.event(item, published_at=now)
            counts.append(len(messages))
        self._retained |= kept  # told on connecting, should this be cut off
        told = await link.publish_all([*messages, *kept.values()])
        whole = [end for end in counts if end <= len(told)]
        if not whole:
            raise SinkError(f"mqtt broker {self._endpoint.broker}: connection lost")
        starts = [0, *whole]
        return [
            next((refusal for refusal in told[start:end] if refusal), None)
            for start, end in zip(starts, whole, strict=False)
        ]

    async def report(self, status: StreamStatus) -> None:
        """Publish a stream's state and its details, retained, with QoS 1."""
        messages = self._topics.status(status)
        self._retained |= {message.topic: message for message in messages}
        link = await self._connected()
        if len(await link.publish_all(messages)) < len(messages):
            raise SinkError(f"mqtt broker {self._endpoint.broker}: connection lost")

    async def _send_one(self, item: Answer | Event) -> None:
        (refusal, *_) = await self.send_all([item])
        if refusal is not None:
            raise refusal

    async def _connected(self) -> Link:
        """The connection, as soon as there is one; raises SinkError after `timeout` seconds without."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.timeout):
                await self._linked.wait()
        if self._link is None:
            raise SinkError(f"mqtt broker {self._endpoint.broker}: not connected")
        return self._link

    async def _stay_connected(self) -> None:
        first, longest = _BACKOFF
        pause = first
        while True:
            started = time.monotonic()
            try:
                await self._stay_linked()
            except SinkError as error:
                self._tell(logging.WARNING, f"{error}; trying on")
            if self._connection.cancelling():  # the client library can swallow a cancellation
                raise asyncio.CancelledError
            if time.monotonic() - started > _LASTING:
                pause = first
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(longest, pause * 2)

    async def _stay_linked(self) -> None:
        """One connection from beginning to end, said goodbye to when cancelled; raises SinkError when it ends."""
        will = Message(self._topics.available, OFFLINE, is_retained=True)
        async with connect(self._endpoint, will=will, url=self.url, timeout=self.timeout) as link:
            try:
                async with asyncio.TaskGroup() as group:
                    upkeep = group.create_task(self._upkeep(link), name=f"mqtt-up[{self.name}]")
                    lost = await link.listen(self._receive)
                    self._hide()
                    upkeep.cancel()
            except asyncio.CancelledError:
                with suppress(SinkError, TimeoutError):
                    async with asyncio.timeout(_GOODBYE):
                        stopped = Message(self._topics.available, STOPPED, is_retained=True)
                        await link.publish(stopped)
                raise
            finally:
                self._hide()
        raise lost

    async def _upkeep(self, link: Link) -> None:
        """Tell everything, let others use `link`, and go on telling what changes."""
        try:
            await link.publish(Message(self._topics.available, ONLINE, is_retained=True))
            await self._publish_retained(link, list(self._retained.values()))
            if self.commands is None:
                self._show(link)
                return
            await self._subscribe(link)
            self._show(link)
            await self._keep_telling(link, self.commands)
        except SinkError as error:
            link.leave(error)

    async def _subscribe(self, link: Link) -> None:
        topics = [self._topics.on_connect]
        if self._requests is not None:
            topics += self._requests.subscriptions
        if self._announcements is not None:
            self._announcements.forget()
            topics += self._announcements.subscriptions
        for topic in await link.subscribe(topics):
            _log.warning("mqtt broker %s: does not let us read %s", self._endpoint.broker, topic)

    async def _keep_telling(self, link: Link, commands: Commands) -> None:
        due = dict.fromkeys(("stats", "status", "snapshots"), 0.0)
        every = {"stats": homeassistant.STATS_EVERY, "status": _HEARTBEAT}
        every |= {"snapshots": self._endpoint.snapshots or 0.0}
        while True:
            self._changed.clear()
            if self._is_asked_anew:
                self._is_asked_anew = False
                await self._publish_retained(link, list(self._retained.values()))
                commands.resend()
            await self._publish_retained(link, self._changes(commands))
            now = time.monotonic()
            for what in [each for each, seconds in every.items() if seconds and now >= due[each]]:
                due[what] = now + every[what]
                if what == "stats":
                    await link.publish(Message(self._topics.stats, as_json(self._stats(commands))))
                elif what == "status":
                    commands.resend()
                else:
                    await self._publish_snapshots(link, commands)
            with suppress(TimeoutError):
                async with asyncio.timeout(_TICK):
                    await self._changed.wait()

    def _changes(self, commands: Commands) -> list[Message]:
        """Retained topics that say something else by now: switches, Home Assistant's devices, what is gone."""
        messages = [
            message
            for message in self._topics.switches(commands)
            if self._retained.get(message.topic) != message
        ]
        self._retained |= {message.topic: message for message in messages}
        streams = {status.stream for status in commands.streams()}
        asked = set(pairs(commands.standing()))
        for topic in [t for t in self._retained if self._topics.is_stale(t, streams, asked)]:
            del self._retained[topic]
            messages.append(Message(topic, b"", is_retained=True))
        if self._announcements is not None:
            messages += self._announcements.due(homeassistant.devices(commands, self._endpoint))
        return messages

    def _stats(self, commands: Commands) -> dict[str, Any]:
        stats = commands.stats()
        for stream, latency in self._latency.items():
            if stream in stats.get("streams", {}):
                stats["streams"][stream]["event_to_answer_ms"] = latency
        return stats

    async def _publish_snapshots(self, link: Link, commands: Commands) -> None:
        for status in commands.streams():
            picture = await asyncio.to_thread(commands.snapshot, status.stream)
            if picture is not None:
                topic = self._topics.of_stream(status.stream, "snapshot")
                message = Message(topic, picture, is_retained=True)
                await link.publish_all([message])

    async def _publish_retained(self, link: Link, messages: Sequence[Message]) -> None:
        for start in range(0, len(messages), _AT_ONCE):
            await link.publish_all(messages[start : start + _AT_ONCE])

    def _receive(self, message: Incoming) -> None:
        """Begin to do what `message` asks, or take it in; never waits."""
        announcements = self._announcements
        if message.topic == self._topics.on_connect:
            self._tell_all(message)
        elif announcements is not None and message.topic == announcements.status_topic:
            if message.payload == ONLINE:
                announcements.forget()
                self._tell_all(message)
        elif self._requests is not None and self._requests.concerns(message):
            self._requests.begin(message, self._group)
        elif announcements is not None and message.is_retained:
            announcements.found(message.topic, message.payload)
            self._changed.set()

    def _tell_all(self, message: Incoming) -> None:
        if not message.is_retained:
            self._is_asked_anew = True
            self._changed.set()

    async def _reply(self, message: Message) -> None:
        self._changed.set()
        if self._link is not None:
            with suppress(SinkError):  # whoever asked is as cut off as we are
                await self._link.publish(message)

    def _count(self, outcome: str) -> None:
        metrics.MQTT_REQUESTS.labels(self.name, outcome).inc()
        self._changed.set()

    def _show(self, link: Link) -> None:
        """Let `send` and `report` use `link`."""
        self._link = link
        self._linked.set()
        metrics.MQTT_CONNECTED.labels(self.name).set(1)
        self._tell(logging.INFO, f"mqtt broker {self._endpoint.broker}: connected")

    def _hide(self) -> None:
        metrics.MQTT_CONNECTED.labels(self.name).set(0)
        self._linked.clear()
        self._link = None

    def _tell(self, level: int, state: str) -> None:
        """Log a state of the connection once, when it is entered."""
        if state != self._told:
            self._told = state
            _log.log(level, "%s", state)
