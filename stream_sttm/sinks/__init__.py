"""Where answers go: one file per protocol, found by URL scheme.

A sink hands over one thing at a time and raises SinkError when it can't. Queues, retries, age limits and the
isolation of sinks from each other are in workers/delivery.py. Importing this table imports no client library.
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
    """An output; entering starts it without waiting for the other side, leaving says goodbye."""

    @property
    def name(self) -> str:
        """What logs, metrics and the outbox call it, such as host:port/prefix; no other's, never a credential."""
        ...

    async def send(self, answer: Answer) -> None:
        """Hand over one answer; returns when the other side has it.

        Raises SinkError where trying again may help and SinkRefused where it never will.
        """
        ...

    async def send_event(self, event: Event) -> None:
        """Hand over what is told of an event; like `send`."""
        ...

    async def report(self, status: StreamStatus) -> None:
        """Tell the other side a stream's status; raises SinkError like `send`."""
        ...


@runtime_checkable
class BatchSink(Sink, Protocol):
    """A sink that is faster with several things at once."""

    async def send_all(self, items: Sequence[Answer | Event]) -> list[SinkRefused | None]:
        """Hand over in order; what became of the first of them, one at least: None, or why it never will be taken.

        Raises SinkError where not even the first was taken and trying again may help.
        """
        ...


def open_sink(url: str, *, commands: Commands | None = None) -> Sink:
    """The sink for `url`, not yet connected; raises ConfigError for an unknown scheme or a missing extra.

    A sink that the other side can ask and steer has the option `commands` and is given them.
    """
    scheme = urls.split(url).scheme
    cls = registry.find(SINKS, GROUP, scheme, kind="sink scheme")
    options: dict[str, Any] = {"url": url}
    if "commands" in registry.options_of(cls):
        options["commands"] = commands
    sink: Sink = registry.build(cls, options, kind=f"sink {scheme}://")
    return sink
