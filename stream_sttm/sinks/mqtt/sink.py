"""The MQTT sink: publishes answers, events and states, and reads requests. `mqtt://user:password@host:1883/prefix`.

One background task keeps the connection for ever. A broker that is down is a normal state. Sending waits a while for
the connection and for the broker's acknowledgement. Retained topics are published again on every connect. url.py parses
the URL, topics.py and publishing.py make the messages, requests.py handles incoming ones. Queues, retries and drops are
in workers/outbox.py.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Self

from stream_sttm import metrics
from stream_sttm.errors import SinkError, SinkHungUp, SinkRefused
from stream_sttm.sinks.commands import Commands
from stream_sttm.sinks.mqtt.client_id import ClientId
from stream_sttm.sinks.mqtt.connection import Connection, connect
from stream_sttm.sinks.mqtt.message import Incoming, Message
from stream_sttm.sinks.mqtt.packet_limit import PacketLimit
from stream_sttm.sinks.mqtt.publishing import StatePublisher, publish_retained
from stream_sttm.sinks.mqtt.requests import OUTCOMES, Requests
from stream_sttm.sinks.mqtt.topics import OFFLINE, ONLINE, STOPPED, Topics, as_json
from stream_sttm.sinks.mqtt.url import parse
from stream_sttm.types import Answer, Event, StreamStatus

_BACKOFF = (0.5, 30.0)  # seconds between attempts to connect: the first and the longest
_LASTING = 5.0  # seconds after which a connection counts as stable
_CORRECTED = 1.0  # seconds between two corrections of our own `available`
_GOODBYE = 1.0  # seconds for publishing `stopped`
_SHARED = (
    "mqtt broker %s: another client seems to use the prefix %s and pushes this one out;"
    " give each service its own prefix or node="
)

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class MqttSink:
    """One broker and topic prefix. `timeout` is how many seconds connecting and an acknowledgement may take.

    With `commands` it also takes questions and commands, and publishes the service's statistics. It announces streams
    and queries to Home Assistant where the URL says so.
    """

    url: str = field(repr=False)
    timeout: float = 10.0
    commands: Commands | None = None

    def __post_init__(self) -> None:
        self._endpoint = parse(self.url)
        self.name = self._endpoint.name
        self._topics = Topics(self._endpoint.prefix)
        self._retained: dict[str, Message] = {}
        self._connection: Connection | None = None
        self._is_connected = asyncio.Event()
        self._client_id = ClientId(self._endpoint)
        self._limit = PacketLimit(self._endpoint.broker, vital=self._topics.available)
        self._is_contradicted = asyncio.Event()  # somebody said that this service is not there
        self._logged = ""  # the connection state that was logged last
        self._publisher: StatePublisher | None = None
        self._requests: Requests | None = None
        if self.commands is not None:
            self._requests = Requests(
                self._endpoint, self.commands, reply=self._reply, count=self._count
            )
            self._publisher = StatePublisher(self._endpoint, self.commands, self._retained)

    async def __aenter__(self) -> Self:
        metrics.MQTT_CONNECTED.labels(self.name).set(0)
        for outcome in OUTCOMES if self._requests is not None else ():
            metrics.MQTT_REQUESTS.labels(self.name, outcome)
        self._stack = AsyncExitStack()
        self._group = await self._stack.enter_async_context(asyncio.TaskGroup())
        self._keeper = self._group.create_task(self._stay_connected(), name=f"mqtt[{self.name}]")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._keeper.cancel()
        if self._requests is not None:
            self._requests.stop()
        await self._stack.aclose()

    async def send(self, answer: Answer) -> None:
        """Publish `answer` with QoS 1, and its short state where it is a standing query's."""
        await self._send_one(answer)

    async def send_event(self, event: Event) -> None:
        """Publish an event with QoS 1."""
        await self._send_one(event)

    async def send_all(self, items: Sequence[Answer | Event]) -> list[SinkRefused | None]:
        """Publish in order without waiting for each acknowledgement. Returns outcomes as BatchSink.send_all does."""
        connection, now = await self._connected(), time.time()
        messages = [self._topics.messages(item, published_at=now) for item in items]
        retained = [
            {m.topic: m for m in self._topics.retained(item, published_at=now)}
            if isinstance(item, Answer) and self._is_newest(item)
            else {}
            for item in items
        ]
        newest = {topic: message for each in retained for topic, message in each.items()}
        refusals = await connection.publish_all([*chain.from_iterable(messages), *newest.values()])
        outcomes: list[SinkRefused | None] = []
        for item, own, states in zip(items, messages, retained, strict=True):
            if len(refusals) < len(own):
                break
            outcomes.append(next((refusal for refusal in refusals[: len(own)] if refusal), None))
            del refusals[: len(own)]
            if outcomes[-1] is None:
                self._retained |= states  # published again on the next connect
            if isinstance(item, Answer) and self._publisher is not None:
                latency = round((now - item.captured_at) * 1000, 1)
                self._publisher.latency[item.question.stream] = latency
        if not outcomes:
            raise SinkHungUp(f"mqtt broker {self._endpoint.broker}: connection lost")
        return outcomes

    def _is_newest(self, answer: Answer) -> bool:
        """Return whether `answer` is what is known now. One that has waited may be of a query that is off by now."""
        question = answer.question
        if self.commands is None or question.query is None:
            return True
        newest = self.commands.newest(question.query, question.stream)
        return newest is not None and newest.answered_at <= answer.answered_at

    async def report(self, status: StreamStatus) -> None:
        """Publish a stream's state and details, retained, with QoS 1."""
        messages = self._topics.status(status)
        self._retained |= {message.topic: message for message in messages}
        connection = await self._connected()
        if len(await connection.publish_all(messages)) < len(messages):
            raise SinkError(f"mqtt broker {self._endpoint.broker}: connection lost")

    async def _send_one(self, item: Answer | Event) -> None:
        (refusal, *_) = await self.send_all([item])
        if refusal is not None:
            raise refusal

    async def _connected(self) -> Connection:
        """Wait for the connection and return it. Raises SinkError after `timeout` seconds without."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.timeout):
                await self._is_connected.wait()
        if self._connection is None:
            raise SinkError(f"mqtt broker {self._endpoint.broker}: not connected")
        return self._connection

    async def _stay_connected(self) -> None:
        first, longest = _BACKOFF
        pause = first
        while True:
            started = time.monotonic()
            try:
                await self._run_connection()
            except SinkError as error:
                self._log_state(logging.WARNING, f"{error}; trying on")
            if self._keeper.cancelling():  # the client library can swallow a cancellation
                raise asyncio.CancelledError
            if time.monotonic() - started > _LASTING:
                pause = first
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(longest, pause * 2)

    async def _run_connection(self) -> None:
        """Keep one connection until it ends, then raise SinkError. Publishes `stopped` when cancelled."""
        will = Message(self._topics.available, OFFLINE, is_retained=True)
        async with connect(
            self._endpoint,
            client_id=self._client_id.value,
            will=will,
            limit=self._limit,
            url=self.url,
            timeout=self.timeout,
        ) as connection:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(self._upkeep(connection), name=f"mqtt-up[{self.name}]"),
                        group.create_task(self._insist(connection), name=f"mqtt-on[{self.name}]"),
                    ]
                    lost = await connection.listen(self._receive)
                    self._hide()
                    for task in tasks:
                        task.cancel()
            except asyncio.CancelledError:
                with suppress(SinkError, TimeoutError):
                    async with asyncio.timeout(_GOODBYE):
                        stopped = Message(self._topics.available, STOPPED, is_retained=True)
                        rest = self._publisher.unfinished() if self._publisher else []
                        await connection.publish_all([stopped, *rest])
                raise
            finally:
                self._hide()
        if connection.is_pushed_out and self._client_id.pushed_out(time.monotonic()):
            _log.warning(_SHARED, self._endpoint.broker, self._endpoint.prefix)
        raise lost

    async def _upkeep(self, connection: Connection) -> None:
        """Publish everything, let others use `connection`, then go on publishing what changes."""
        try:
            await connection.publish(self._topics.online)
            await publish_retained(connection, list(self._retained.values()))
            for topic in await connection.subscribe(self._subscriptions()):
                _log.warning("mqtt broker %s: lets us not read %s", self._endpoint.broker, topic)
            self._show(connection)
            if self._publisher is not None:
                await self._publisher.run(connection)
        except SinkError as error:
            connection.leave(error)

    def _subscriptions(self) -> list[str]:
        """Return the topics to read. A dead predecessor's last will may be published on `available` at any time."""
        readers = (self._publisher, self._requests)
        read = [topic for each in readers if each is not None for topic in each.subscriptions]
        return [self._topics.available, *read]

    async def _insist(self, connection: Connection) -> None:
        """Publish `online` again whenever somebody says something else of this service."""
        try:
            while True:
                await self._is_contradicted.wait()
                self._is_contradicted.clear()
                await connection.publish(self._topics.online)
                await asyncio.sleep(_CORRECTED)
        except SinkError as error:
            connection.leave(error)

    def _receive(self, message: Incoming) -> None:
        """Handle `message`, or begin a task for it. Never waits."""
        if message.topic == self._topics.available:
            if message.payload != ONLINE:
                self._is_contradicted.set()
            return
        if self._publisher is None or self._requests is None or self._publisher.take(message):
            return
        if self._requests.concerns(message):
            self._requests.begin(message, self._group)

    async def _reply(self, message: Message) -> None:
        if self._connection is None:
            return
        with suppress(SinkError):  # the asker has lost the broker too
            try:
                await self._connection.publish(message)
            except SinkRefused as refused:
                body = as_json({"error": f"the answer can't be sent: {refused}"})
                await self._connection.publish(replace(message, payload=body))

    def _count(self, outcome: str) -> None:
        metrics.MQTT_REQUESTS.labels(self.name, outcome).inc()
        if self._publisher is not None:
            self._publisher.look_again()

    def _show(self, connection: Connection) -> None:
        """Let `send` and `report` use `connection`."""
        self._connection = connection
        self._is_connected.set()
        metrics.MQTT_CONNECTED.labels(self.name).set(1)
        self._log_state(logging.INFO, f"mqtt broker {self._endpoint.broker}: connected")

    def _hide(self) -> None:
        metrics.MQTT_CONNECTED.labels(self.name).set(0)
        self._is_connected.clear()
        self._connection = None

    def _log_state(self, level: int, state: str) -> None:
        """Log a connection state once, when it is entered."""
        if state != self._logged:
            self._logged = state
            _log.log(level, "%s", state)
