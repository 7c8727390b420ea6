"""A live connection to an MQTT broker: publish in order, read every acknowledgement, and listen.

aiomqtt connects, pings and reads. Publishing goes to its paho client directly, because aiomqtt ignores the reason code
of an MQTT 5 acknowledgement. Messages in flight fail at once when the connection breaks. Knows nothing of topics, and
never reconnects by itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import aiomqtt
from paho.mqtt.client import MQTT_ERR_SUCCESS
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from stream_sttm import urls
from stream_sttm.errors import SinkError, SinkHungUp, SinkRefused
from stream_sttm.sinks.mqtt.message import Incoming, Message
from stream_sttm.sinks.mqtt.packet_limit import PacketLimit
from stream_sttm.sinks.mqtt.url import Endpoint

_MAX_PACKET_BYTES = 2 * 1024 * 1024  # that an MQTT 5 broker may send us
_MAX_UNREAD = 1000  # messages
_IN_FLIGHT = 20  # messages that wait for an acknowledgement; mosquitto's own default
_KEEPALIVE = 15  # seconds; soon after, a lost broker is noticed and our last will sent
_CONNACK = 5.0  # seconds from the connection to the broker's CONNACK
_DENIED = (4, 5, 134, 135)  # CONNACK codes of MQTT 3.1.1 and 5 for a wrong user or password
_TAKEN_OVER, _SHUTTING_DOWN = 0x8E, 0x8B  # DISCONNECT codes of MQTT 5
_NEVER = (0x87, 0x90, 0x95, 0x99)  # PUBACK codes: not authorized, bad topic, too large, bad payload

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Sent:
    """A message on its way, and what becomes of it."""

    message: Message
    outcome: asyncio.Future[SinkError | None]


class Connection:
    """An open connection. `timeout` is how many seconds an acknowledgement may take, `limit` what the broker takes."""

    def __init__(
        self, client: aiomqtt.Client, endpoint: Endpoint, timeout: float, limit: PacketLimit
    ) -> None:
        self._client, self._timeout, self._limit = client, timeout, limit
        self._broker = f"mqtt broker {endpoint.broker}"
        self._is_5 = endpoint.protocol == "5"
        self._paho = client._client  # noqa: SLF001 - see above
        self._paho.on_publish = self._acknowledged
        self._paho.on_disconnect = self._disconnected
        self._reason: int | None = None  # why the broker hung up, where it said so
        self._pending: dict[int, _Sent] = {}
        self._turn = asyncio.Lock()  # taken for each message while these go one at a time
        self._watch: asyncio.Timeout | None = None
        self._lost: SinkError | None = None
        self.is_pushed_out = (
            False  # ended as a broker does when a second client of this id connects
        )

    async def publish(self, message: Message) -> None:
        """Publish one message. Returns on the broker's acknowledgement, raises SinkError without one."""
        (refusal,) = await self.publish_all([message])
        if refusal is not None:
            raise refusal

    async def publish_all(self, messages: Sequence[Message]) -> list[SinkRefused | None]:
        """Publish in order. Returns an outcome for the first one or more messages: None, or why it is refused for good.

        Raises SinkError where not even the first was acknowledged.
        """
        outcomes: list[SinkRefused | None] = []
        is_careful = self._limit.is_careful
        begun = () if is_careful else [self._begin(message) for message in messages]
        for place, message in enumerate(messages):
            outcome = await (self._alone(message) if is_careful else self._outcome(begun[place]))
            if outcome is None or isinstance(outcome, SinkRefused):
                outcomes.append(outcome)
            elif outcomes:
                break
            else:
                raise outcome
        return outcomes

    async def _alone(self, message: Message) -> SinkError | None:
        """Publish a message while no other is on its way."""
        async with self._turn:
            return await self._outcome(self._begin(message))

    async def subscribe(self, topics: Sequence[str]) -> list[str]:
        """Subscribe with QoS 1. Returns the topics that the broker refuses."""
        if not topics:
            return []
        try:
            codes = await self._client.subscribe([(topic, 1) for topic in topics])
        except (aiomqtt.MqttError, OSError) as error:
            raise SinkError(f"{self._broker}: {_one_line(error)}") from error
        values = (code if isinstance(code, int) else code.value for code in codes)
        return [topic for topic, value in zip(topics, values, strict=True) if value >= 0x80]

    async def listen(self, receive: Callable[[Incoming], None]) -> SinkError:
        """Pass on what comes in until the connection breaks or is left. Returns the reason."""
        try:
            async with asyncio.timeout(None) as self._watch:
                if self._lost is not None:
                    self._watch.reschedule(0)
                async for message in self._client.messages:
                    receive(_incoming(message))
        except (aiomqtt.MqttError, OSError):  # TimeoutError is an OSError
            if self._lost is None:
                self.is_pushed_out = self._is_push()
                if self._reason not in (_TAKEN_OVER, _SHUTTING_DOWN):
                    self._limit.hung_up([sent.message for sent in self._pending.values()])
        finally:
            self._watch = None
        lost = self._lost or SinkHungUp(f"{self._broker}: connection lost")
        self._give_up(lost)
        return lost

    def _is_push(self) -> bool:
        """Return whether a second client of this id may be why the broker hung up. MQTT 3.1.1 gives no reason."""
        return not self._pending if self._reason is None else self._reason == _TAKEN_OVER

    def leave(self, error: SinkError) -> None:
        """End `listen` because of `error`."""
        self._lost = self._lost or error
        if self._watch is not None:
            self._watch.reschedule(0)

    def _begin(self, message: Message) -> asyncio.Future[SinkError | None]:
        future: asyncio.Future[SinkError | None] = asyncio.get_running_loop().create_future()
        if self._lost is not None:
            future.set_result(self._lost)
        elif (refusal := self._limit.refusal(message)) is not None:
            future.set_result(refusal)
        else:
            try:
                sent = self._paho.publish(
                    message.topic,
                    message.payload,
                    qos=1,
                    retain=message.is_retained,
                    properties=self._properties(message),
                )
            except ValueError as error:
                future.set_result(SinkRefused(f"{self._broker}: {_one_line(error)}"))
                return future
            if sent.rc == MQTT_ERR_SUCCESS:
                self._pending[sent.mid] = _Sent(message, future)
            else:
                future.set_result(SinkError(f"{self._broker}: connection lost"))
        return future

    def _properties(self, message: Message) -> Properties | None:
        if not self._is_5 or message.correlation is None:
            return None
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.CorrelationData = message.correlation
        return properties

    async def _outcome(self, future: asyncio.Future[SinkError | None]) -> SinkError | None:
        if future.done():
            return future.result()
        try:
            async with asyncio.timeout(self._timeout):
                return await future
        except TimeoutError:
            # leave a silent broker, or new messages would pile up behind this one
            error = SinkError(f"{self._broker}: no acknowledgement")
            self.leave(error)
            return error

    def _disconnected(
        self, paho: Any, data: Any, flags: Any, reason: ReasonCode, properties: Any
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self._reason = reason.value
        self._client._on_disconnect(paho, data, flags, reason, properties)  # noqa: SLF001
        ended = self._client._disconnected  # noqa: SLF001
        if ended.done() and not ended.cancelled():
            ended.exception()  # seen; the library would have asyncio log it as never retrieved

    def _acknowledged(
        self, _client: Any, _data: Any, mid: int, reason: ReasonCode, _properties: Any
    ) -> None:
        sent = self._pending.pop(mid, None)
        if sent is None or sent.outcome.done():
            return
        if not reason.is_failure:
            self._limit.took(sent.message)
            sent.outcome.set_result(None)
        else:
            kind = SinkRefused if reason.value in _NEVER else SinkError
            sent.outcome.set_result(kind(f"{self._broker}: refuses what is published: {reason}"))

    def _give_up(self, error: SinkError) -> None:
        """Fail the messages in flight, and all later ones."""
        self._lost = error
        for sent in self._pending.values():
            if not sent.outcome.done():
                sent.outcome.set_result(error)
        self._pending.clear()


@asynccontextmanager
async def connect(
    endpoint: Endpoint,
    *,
    client_id: str,
    will: Message,
    limit: PacketLimit,
    url: str,
    timeout: float,
) -> AsyncIterator[Connection]:
    """Connect, and disconnect at the end. Raises SinkError with the reason, without `url`'s secrets.

    `limit` is told what the broker says of its own.
    """
    broker = f"mqtt broker {endpoint.broker}"
    _log.debug("%s: connecting", broker)
    silent = _log.getChild("library")  # it would log every failed attempt; the sink logs the first
    silent.setLevel(logging.CRITICAL)
    is_5 = endpoint.protocol == "5"
    client = aiomqtt.Client(
        hostname=endpoint.host,
        port=endpoint.port,
        username=endpoint.username,
        password=endpoint.password,
        tls_context=endpoint.tls,
        protocol=aiomqtt.ProtocolVersion.V5 if is_5 else aiomqtt.ProtocolVersion.V311,
        properties=_limits() if is_5 else None,
        will=aiomqtt.Will(will.topic, will.payload, qos=1, retain=will.is_retained),
        identifier=client_id,
        keepalive=_KEEPALIVE,
        timeout=_CONNACK,
        max_queued_incoming_messages=_MAX_UNREAD,
        # An MQTT 5 broker may set a limit that paho does not read. MQTT 3.1.1 has no such limit.
        max_inflight_messages=_IN_FLIGHT if is_5 else 0,
        logger=silent,
    )
    _read_limit(client, limit)
    connecting = asyncio.create_task(client.__aenter__(), name=f"mqtt-connect[{endpoint.broker}]")
    try:
        await asyncio.shield(connecting)
    except asyncio.CancelledError:
        # the library connects in a thread that can't be cancelled, but gives up within seconds
        with suppress(aiomqtt.MqttError, OSError):
            await connecting
            await client.__aexit__(None, None, None)
        _hang_up(client)
        raise
    except (aiomqtt.MqttError, OSError) as error:
        _hang_up(client)
        raise SinkError(f"{broker}: {_explain(error, url)}") from error
    try:
        yield Connection(client, endpoint, timeout, limit)
    finally:
        with suppress(aiomqtt.MqttError, OSError):
            await client.__aexit__(None, None, None)


def _limits() -> Properties:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.MaximumPacketSize = _MAX_PACKET_BYTES
    return properties


def _read_limit(client: aiomqtt.Client, limit: PacketLimit) -> None:
    """Have `limit` told the largest packet that the broker takes. The library does not pass it on."""

    def connected(paho: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        limit.connected(getattr(properties, "MaximumPacketSize", None))
        client._on_connect(paho, data, flags, reason, properties)  # noqa: SLF001

    client._client.on_connect = connected  # noqa: SLF001 - there is no public way


def _hang_up(client: aiomqtt.Client) -> None:
    """End a failed attempt to connect. Left half open, a slow broker would keep it, and our last will with it."""
    client._client.disconnect()  # noqa: SLF001 - there is no public way


def _incoming(message: aiomqtt.Message) -> Incoming:
    properties = message.properties
    return Incoming(
        str(message.topic),
        bytes(message.payload or b""),
        bool(message.retain),
        getattr(properties, "ResponseTopic", None),
        getattr(properties, "CorrelationData", None),
    )


def _explain(error: Exception, url: str) -> str:
    code = getattr(getattr(error, "rc", None), "value", getattr(error, "rc", None))
    if isinstance(error, aiomqtt.exceptions.MqttConnectError):
        if code in _DENIED:
            return "user or password refused; check the sink's URL"
        if code in (1, 132):
            return "does not speak this version of MQTT; set protocol=311 or 5 in the sink's URL"
    if "timed out" in str(error).lower():
        return "can't connect: no answer; check host, port and firewall"
    return f"can't connect: {urls.scrub(_one_line(error), url)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
