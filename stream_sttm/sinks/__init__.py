"""Where answers go: one file per protocol, found by URL scheme.

A sink hands over one thing at a time and raises SinkError when it can't. Queues, retries, age limits and the
isolation of sinks from each other are in workers/delivery.py. Importing this table imports no client library.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from stream_sttm import registry, urls
from stream_sttm.types import Answer, StreamStatus

GROUP = "stream_sttm.sinks"
SINKS: dict[str, str] = {
    "mqtt": "stream_sttm.sinks.mqtt:MqttSink",
    "mqtts": "stream_sttm.sinks.mqtt:MqttSink",
}


class Sink(AbstractAsyncContextManager["Sink"], Protocol):
    """An output; entering starts it without waiting for the other side, leaving says goodbye."""

    @property
    def name(self) -> str:
        """What logs and metrics call it, such as host:port; never a credential."""
        ...

    async def send(self, answer: Answer) -> None:
        """Hand over one answer; returns when the other side has it.

        Raises SinkError where trying again may help and SinkRefused where it never will.
        """
        ...

    async def report(self, status: StreamStatus) -> None:
        """Tell the other side a stream's status; raises SinkError like `send`."""
        ...


def open_sink(url: str) -> Sink:
    """The sink for `url`, not yet connected; raises ConfigError for an unknown scheme or a missing extra."""
    scheme = urls.split(url).scheme
    cls = registry.find(SINKS, GROUP, scheme, kind="sink scheme")
    sink: Sink = registry.build(cls, {"url": url}, kind=f"sink {scheme}://")
    return sink
