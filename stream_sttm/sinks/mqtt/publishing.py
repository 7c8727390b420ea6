"""Publish the service's state on MQTT: switches, statistics, pictures, Home Assistant's devices.

Polls the state and publishes what has changed. Retained topics of what is no longer configured are cleared. Knows
nothing of answers, and only that a connection is open while `run` runs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from stream_sttm.sinks.commands import Commands
from stream_sttm.sinks.mqtt import homeassistant
from stream_sttm.sinks.mqtt.connection import Connection
from stream_sttm.sinks.mqtt.message import Incoming, Message
from stream_sttm.sinks.mqtt.topics import ONLINE, Topics, as_json, pairs
from stream_sttm.sinks.mqtt.url import Endpoint

_AT_ONCE = 200  # retained messages in a batch
_WORKED_OFF = 2.0  # seconds after which Home Assistant has let go of what was taken back
_TICK = 1.0  # seconds between two checks for changes
_HEARTBEAT = 60.0  # seconds between two reports of every stream's status


class StatePublisher:
    """Publishes what `commands` show. `retained`: the messages that the broker is to keep, answers' states included."""

    def __init__(
        self, endpoint: Endpoint, commands: Commands, retained: dict[str, Message]
    ) -> None:
        self.latency: dict[str, float] = {}  # of each stream's last answer, in ms
        self._endpoint, self._commands, self._retained = endpoint, commands, retained
        self._topics = Topics(endpoint.prefix)
        self._devices = homeassistant.Announcements(endpoint) if endpoint.discovery else None
        self._changed = asyncio.Event()
        self._is_resend_due = False
        self._to_empty: dict[str, float] = {}  # retained topics, and the monotonic time for it

    @property
    def subscriptions(self) -> list[str]:
        """The topics to subscribe to."""
        by_others = [] if self._endpoint.commands == "none" else [self._topics.on_connect]
        return [*by_others, *(self._devices.subscriptions if self._devices else ())]

    def look_again(self) -> None:
        """Check for changes now."""
        self._changed.set()

    def take(self, message: Incoming) -> bool:
        """Handle a message about what is published. Returns whether it was one."""
        devices = self._devices
        if message.topic == self._topics.on_connect:
            self._is_resend_due |= not message.is_retained
        elif devices is not None and message.topic == devices.status_topic:
            if message.payload == ONLINE and not message.is_retained:
                devices.forget()
                self._is_resend_due = True
        elif devices is not None and devices.may_be(message.topic):
            if message.is_retained:
                devices.found(message.topic, message.payload)
        else:
            return False
        self._changed.set()
        return True

    async def run(self, connection: Connection) -> None:
        """Publish over `connection` for ever. Raises SinkError where that breaks."""
        if self._devices is not None:
            self._devices.forget()
        every = {"stats": homeassistant.STATS_EVERY, "status": _HEARTBEAT}
        every |= {"snapshots": self._endpoint.snapshots or float("inf")}
        due = dict.fromkeys(every, 0.0) | {"snapshots": 0.0 if self._endpoint.snapshots else 1e99}
        while True:
            self._changed.clear()
            if self._is_resend_due:
                self._is_resend_due = False
                retained = [self._topics.online, *self._retained.values()]
                await publish_retained(connection, retained)
                self._commands.resend()
            await publish_retained(connection, self._changes())
            now = time.monotonic()
            for what in [each for each in every if now >= due[each]]:
                due[what] = now + every[what]
                await self._publish(what, connection)
            with suppress(TimeoutError):
                async with asyncio.timeout(_TICK):
                    await self._changed.wait()

    async def _publish(self, what: str, connection: Connection) -> None:
        if what == "status":
            self._commands.resend()
        elif what == "stats":
            await connection.publish_all([Message(self._topics.stats, as_json(self._stats()))])
        else:
            for status in self._commands.streams():
                picture = await asyncio.to_thread(self._commands.snapshot, status.stream)
                if picture is not None:
                    topic = self._topics.of_stream(status.stream, "snapshot")
                    await connection.publish_all([Message(topic, picture, is_retained=True)])

    def _changes(self) -> list[Message]:
        """Return messages for the retained topics whose content has changed."""
        commands = self._commands
        messages = [
            message
            for message in self._topics.switches(commands)
            if self._retained.get(message.topic) != message
        ]
        messages += self._states()
        self._retained |= {message.topic: message for message in messages}
        now = time.monotonic()
        if self._devices is not None:
            told, gone = self._devices.due(homeassistant.devices(commands, self._endpoint))
            messages += told
            self._empty_later(gone, now)
        streams = {status.stream for status in commands.streams()}
        asked = set(pairs(commands.standing()))
        stale = [t for t in self._retained if self._topics.is_stale(t, streams, asked)]
        for topic in stale:
            del self._retained[topic]
        self._empty_later(stale, now)
        return messages + self._empty_now(now)

    def unfinished(self) -> list[Message]:
        """Return the messages that empty what is yet to be emptied, for a sink that ends."""
        return self._empty_now(float("inf"))

    def _empty_later(self, topics: Sequence[str], now: float) -> None:
        """Empty `topics` once Home Assistant has let go of them, at once where it is not told of any."""
        at = now if self._devices is None else now + _WORKED_OFF
        for topic in topics:
            self._to_empty.setdefault(topic, at)

    def _empty_now(self, now: float) -> list[Message]:
        """Return the messages that empty the topics whose time has come, but not those in use again."""
        due = [topic for topic, at in self._to_empty.items() if at <= now]
        for topic in due:
            del self._to_empty[topic]
        return [
            Message(topic, b"", is_retained=True) for topic in due if topic not in self._retained
        ]

    def _states(self) -> list[Message]:
        """Return the states of queries whose answer nobody knows any more, and those that this sink lacks."""
        messages = []
        for stream, query in pairs(self._commands.standing()):
            answer, unknown = (
                self._commands.newest(query, stream),
                self._topics.unknown(stream, query),
            )
            published = self._retained.get(unknown.topic)
            if answer is None and published != unknown:
                messages.append(unknown)
            elif answer is not None and published is None:
                messages += self._topics.retained(answer, published_at=time.time())
        return messages

    def _stats(self) -> dict[str, Any]:
        stats = self._commands.stats()
        for stream, latency in self.latency.items():
            if stream in stats.get("streams", {}):
                stats["streams"][stream]["event_to_answer_ms"] = latency
        return stats


async def publish_retained(connection: Connection, messages: Sequence[Message]) -> None:
    """Publish in batches that a broker can take. What it refuses is skipped."""
    for start in range(0, len(messages), _AT_ONCE):
        await connection.publish_all(messages[start : start + _AT_ONCE])
