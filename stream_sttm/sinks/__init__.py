"""The sinks, where answers go: one module or package per protocol, found by URL scheme.

A sink sends one thing at a time and raises SinkError where it can't. Queues, retries and age limits are in
workers/outbox.py. Importing this table imports no client library.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, runtime_checkable

from stream_sttm import registry, urls
from stream_sttm.errors import SinkRefused
from stream_sttm.sinks.commands import Commands
from stream_sttm.types import Answer, Event, StreamStatus

GROUP = "stream_sttm.sinks"
SINKS: dict[str, str] = {
    "mqtt": "stream_sttm.sinks.mqtt.sink:MqttSink",
    "mqtts": "stream_sttm.sinks.mqtt.sink:MqttSink",
    "http": "stream_sttm.sinks.webhook:WebhookSink",
    "https": "stream_sttm.sinks.webhook:WebhookSink",
}


class Sink(AbstractAsyncContextManager["Sink"], Protocol):
    """An output. Entering starts it without waiting for the other side, leaving disconnects."""

    @property
    def name(self) -> str:
        """Its unique name in logs, metrics and the outbox, such as host:port/prefix. Holds no credential."""
        ...

    async def send(self, answer: Answer) -> None:
        """Send one answer. Returns once the other side has it.

        Raises SinkError where trying again may help and SinkRefused where it never will.
        """
        ...

    async def send_event(self, event: Event) -> None:
        """Send an event, like `send`."""
        ...

    async def report(self, status: StreamStatus) -> None:
        """Send a stream's status. Raises SinkError like `send`."""
        ...


@runtime_checkable
class BatchSink(Sink, Protocol):
    """A sink that is faster with several items at once."""

    async def send_all(self, items: Sequence[Answer | Event]) -> list[SinkRefused | None]:
        """Send in order. Returns an outcome for the first one or more items: None, or why it is refused for good.

        Raises SinkError where not even the first was taken and trying again may help.
        """
        ...


def open_sink(url: str, *, commands: Commands | None = None) -> Sink:
    """Return the sink for `url`, not yet connected. Raises ConfigError for an unknown scheme or a missing extra.

    A sink that takes questions and commands has the option `commands`.
    """
    scheme = urls.split(url).scheme
    cls = registry.find(SINKS, GROUP, scheme, kind="sink scheme")
    options: dict[str, Any] = {"url": url}
    if "commands" in registry.options_of(cls):
        options["commands"] = commands
    sink: Sink = registry.build(cls, options, kind=f"sink {scheme}://")
    return sink
