"""What a broker is known not to take: what is too large for it, and what it hangs up on.

With MQTT 5 the broker tells its limit. With MQTT 3.1.1 it only hangs up, so it is found out: after a hang-up messages
go one at a time, and one that is alone on its way at hang-up after hang-up is to blame. What is to blame is left out
and told once, so that everything else goes on. Outlives connections. Knows nothing of sockets.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from stream_sttm.errors import SinkRefused
from stream_sttm.sinks.mqtt.message import Message

MAX_PAYLOAD_BYTES = 256 * 1024
_CAREFUL = 60.0  # seconds after a hang-up for which suspects go one at a time
_HANG_UPS = 2  # on a message alone, larger than all that was taken
_SMALL_HANG_UPS = 3  # on one that is not, whose topic may be what the broker won't have
_TOLD = 1000  # topics remembered, so that each is told once

_log = logging.getLogger(__name__)


def packet_bytes(message: Message) -> int:
    """Return the size of a message as an MQTT packet, at its largest."""
    header = 1 + 4 + 2 + 2 + 1  # type, length, topic's length, packet id, properties' length
    correlation = 0 if message.correlation is None else 3 + len(message.correlation)
    return header + len(message.topic.encode()) + correlation + len(message.payload)


class PacketLimit:
    """The limits of the broker called `broker`. What is published on `vital` is never left out."""

    def __init__(self, broker: str, *, vital: str) -> None:
        self._broker, self._vital = f"mqtt broker {broker}", vital
        self._limit: int | None = None  # that the broker has told
        self._found: dict[str, int] = {}  # size from which a topic is left out
        self._found_for_all: int | None = None  # size from which everything is
        self._largest = 0  # that was taken
        self._suspects: dict[str, int] = {}  # hang-ups on a topic alone
        self._hung_up_at = -_CAREFUL
        self._told: dict[str, str] = {}

    @property
    def is_careful(self) -> bool:
        """Whether messages are to go one at a time, so that a hang-up shows which of them is to blame."""
        return bool(self._suspects) and time.monotonic() - self._hung_up_at < _CAREFUL

    def connected(self, limit: int | None) -> None:
        """Take the limit that the broker tells on connecting, None where it tells none."""
        self._limit = limit

    def refusal(self, message: Message) -> SinkRefused | None:
        """Return why `message` is not sent, None where it may be. Logs the first of each topic."""
        why = self._reason(message)
        if why is None:
            return None
        if (told := self._told.get(message.topic)) is None:
            told = self._told[message.topic] = f"{self._broker}: {message.topic} {why}"
            if len(self._told) > _TOLD:
                del self._told[next(iter(self._told))]
            _log.warning("%s; it is left out", told)
        return SinkRefused(told)

    def took(self, message: Message) -> None:
        """Note that the broker has acknowledged `message`."""
        self._largest = max(self._largest, packet_bytes(message))
        self._suspects.pop(message.topic, None)

    def hung_up(self, on_their_way: Sequence[Message]) -> None:
        """Note that the broker hung up while these were not acknowledged."""
        if not on_their_way:
            return
        self._hung_up_at = time.monotonic()
        for message in on_their_way:
            self._suspects.setdefault(message.topic, 0)
        if len(on_their_way) == 1:
            self._blame(on_their_way[0])

    def _blame(self, message: Message) -> None:
        size, topic = packet_bytes(message), message.topic
        self._suspects[topic] += 1
        is_largest = size > self._largest
        most = _HANG_UPS if is_largest else _SMALL_HANG_UPS
        if topic in self._found:
            most = 1  # it was to blame before, with more bytes
        if topic == self._vital or self._suspects[topic] < most:
            return
        self._found[topic] = min(size, self._found.get(topic, size))
        if is_largest:
            self._found_for_all = min(size, self._found_for_all or size)
        del self._suspects[topic]

    def _reason(self, message: Message) -> str | None:
        size = packet_bytes(message)
        if len(message.payload) > MAX_PAYLOAD_BYTES:
            return f"would take {len(message.payload)} bytes; at most {MAX_PAYLOAD_BYTES} are sent"
        if message.topic == self._vital:
            return None
        if self._limit is not None and size > self._limit:
            return f"takes {size} bytes; the broker takes at most {self._limit}"
        found = self._found.get(message.topic)
        if found is None or found > size:
            found = self._found_for_all
        if found is None or found > size:
            return None
        return f"takes {size} bytes; the broker hangs up on it, as on {found} bytes"
