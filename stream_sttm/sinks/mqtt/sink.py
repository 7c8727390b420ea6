"""Answers, events and states on MQTT, and the service's ear there: `mqtt://user:password@host:1883/prefix`.

One background task keeps the connection, for ever; a broker that is down is a normal state. Handing over waits a
while for it and for the broker's acknowledgement. Retained topics are told anew on every connect. What the URL means is
in mqtt_url.py, what is said in topics.py and mqtt_telling.py, what is heard in mqtt_requests.py. Knows nothing of
queues, retries or drops (workers/outbox.py) nor of what a question means.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Self

from stream_sttm import metrics
from stream_sttm.errors import SinkError, SinkHungUp, SinkRefused
from stream_sttm.sinks.commands import Commands
from stream_sttm.sinks.mqtt.connection import Connection, connect
from stream_sttm.sinks.mqtt.message import Incoming, Message
from stream_sttm.sinks.mqtt.publishing import StatePublisher, publish_retained
from stream_sttm.sinks.mqtt.requests import Requests
from stream_sttm.sinks.mqtt.topics import OFFLINE, ONLINE, STOPPED, Topics
from stream_sttm.sinks.mqtt.url import parse
from stream_sttm.types import Answer, Event, StreamStatus

_BACKOFF = (0.5, 30.0)  # seconds between attempts to connect: the first and the longest
_LASTING = 5.0  # seconds after which a connection was a good one
_GOODBYE = 1.0  # seconds to say `stopped` in

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
        self._link: Connection | None = None
        self._linked = asyncio.Event()
        self._told = ""  # the last state of the connection that was logged
        self._telling: StatePublisher | None = None
        self._requests: Requests | None = None
        if self.commands is not None:
            discovery = self._endpoint.discovery
            foreign = () if discovery is None else (discovery,)
            self._requests = Requests(
                self._topics,
                self.commands,
                foreign=foreign,
                frigate=self._endpoint.frigate,
                reply=self._reply,
                count=self._count,
            )
            self._telling = StatePublisher(self._endpoint, self.commands, self._retained)
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
        messages = [self._topics.told(item, published_at=now) for item in items]
        kept = [
            {m.topic: m for m in self._topics.kept(item, published_at=now)}
            if isinstance(item, Answer)
            else {}
            for item in items
        ]
        newest = {topic: message for each in kept for topic, message in each.items()}
        told = await link.publish_all([*chain.from_iterable(messages), *newest.values()])
        outcomes: list[SinkRefused | None] = []
        for item, own, states in zip(items, messages, kept, strict=True):
            if len(told) < len(own):
                break
            outcomes.append(next((refusal for refusal in told[: len(own)] if refusal), None))
            del told[: len(own)]
            if outcomes[-1] is None:
                self._retained |= states  # told on connecting, should this have been cut off
            if isinstance(item, Answer) and self._telling is not None:
                latency = round((now - item.captured_at) * 1000, 1)
                self._telling.latency[item.question.stream] = latency
        if not outcomes:
            raise SinkHungUp(f"mqtt broker {self._endpoint.broker}: connection lost")
        return outcomes

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

    async def _connected(self) -> Connection:
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

    async def _upkeep(self, link: Connection) -> None:
        """Tell everything, let others use `link`, and go on telling what changes."""
        try:
            await link.publish(Message(self._topics.available, ONLINE, is_retained=True))
            await publish_retained(link, list(self._retained.values()))
            if self._telling is None or self._requests is None:
                self._show(link)
                return
            topics = [*self._telling.subscriptions, *self._requests.subscriptions]
            for topic in await link.subscribe(topics):
                _log.warning("mqtt broker %s: lets us not read %s", self._endpoint.broker, topic)
            self._show(link)
            await self._telling.run(link)
        except SinkError as error:
            link.leave(error)

    def _receive(self, message: Incoming) -> None:
        """Take in what `message` says or begin to do what it asks; never waits."""
        if self._telling is None or self._requests is None or self._telling.take(message):
            return
        if self._requests.concerns(message):
            self._requests.begin(message, self._group)

    async def _reply(self, message: Message) -> None:
        if self._link is not None:
            with suppress(SinkError):  # whoever asked is as cut off as we are
                await self._link.publish(message)

    def _count(self, outcome: str) -> None:
        metrics.MQTT_REQUESTS.labels(self.name, outcome).inc()
        if self._telling is not None:
            self._telling.look_again()

    def _show(self, link: Connection) -> None:
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
