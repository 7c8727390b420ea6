"""The MQTT topics of a service and what stands in them, from answers, events, statuses and what is configured.

Pure: names and payloads, no connection. README.md has the table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stream_sttm.config.queries import QuerySettings
from stream_sttm.sinks.commands import Commands
from stream_sttm.sinks.mqtt.message import Message
from stream_sttm.types import Answer, AnswerType, Event, StreamState, StreamStatus

MAX_STATE_CHARS = 255  # what Home Assistant takes as a state
ONLINE, OFFLINE, STOPPED = b"online", b"offline", b"stopped"
ON, OFF = b"ON", b"OFF"
UNKNOWN = "None"  # Home Assistant's word for a state that is not known


@dataclass(frozen=True, slots=True)
class Topics:
    """Every topic under one prefix; those of a stream or query by its name."""

    prefix: str

    @property
    def available(self) -> str:
        """Whether the service runs; also its last will."""
        return f"{self.prefix}/available"

    @property
    def stats(self) -> str:
        """The service's numbers."""
        return f"{self.prefix}/stats"

    @property
    def events(self) -> str:
        """Every event of every query."""
        return f"{self.prefix}/events"

    @property
    def on_connect(self) -> str:
        """Where whoever has just connected asks for all states anew."""
        return f"{self.prefix}/onConnect"

    def of_stream(self, stream: str, *rest: str) -> str:
        """A stream's own topic."""
        return "/".join((self.prefix, stream, *rest))

    def of_query(self, stream: str, query: str, *rest: str) -> str:
        """A query's own topic on one stream."""
        return self.of_stream(stream, "query", query, *rest)

    def told(self, item: Answer | Event, *, published_at: float) -> list[Message]:
        """What is published of an answer or an event, once."""
        if isinstance(item, Answer):
            return [self.answer(item, published_at=published_at)]
        return self.event(item, published_at=published_at)

    def answer(self, answer: Answer, *, published_at: float) -> Message:
        """An answer where its readers look for it."""
        question = answer.question
        topic = (
            self.of_stream(question.stream, "ask", question.id, "answer")
            if question.query is None
            else self.of_query(question.stream, question.query, "answer")
        )
        return Message(topic, as_json(answer.as_dict(published_at=published_at)))

    def kept(self, answer: Answer, *, published_at: float) -> list[Message]:
        """What is kept of a standing query's answer: a short state, and all of it as attributes."""
        stream, query = answer.question.stream, answer.question.query
        if query is None:
            return []
        body = as_json(answer.as_dict(published_at=published_at))
        return [
            Message(self.of_query(stream, query, "state"), utf8(state(answer)), is_retained=True),
            Message(self.of_query(stream, query, "attributes"), body, is_retained=True),
        ]

    def event(self, event: Event, *, published_at: float) -> list[Message]:
        """An event for all readers, and for Home Assistant's entity of its query."""
        body = event.as_dict(published_at=published_at)
        entity = self.of_query(event.stream, event.query, "event")
        return [
            Message(self.events, as_json(body)),
            Message(entity, as_json({"event_type": event.kind.value, **body})),
        ]

    def status(self, status: StreamStatus) -> list[Message]:
        """A stream's state and its details."""
        root = self.of_stream(status.stream, "status")
        return [
            Message(root, utf8(status.state.value), is_retained=True),
            Message(f"{root}/attributes", as_json(status.as_dict()), is_retained=True),
        ]

    def switches(self, commands: Commands) -> list[Message]:
        """Whether each stream is watched and each query asked."""
        messages = [
            Message(
                self.of_stream(status.stream, "enabled", "state"),
                OFF if status.state is StreamState.DISABLED else ON,
                is_retained=True,
            )
            for status in commands.streams()
        ]
        return messages + [
            Message(
                self.of_query(stream, query, "enabled", "state"),
                ON if commands.is_query_enabled(query, stream) else OFF,
                is_retained=True,
            )
            for stream, query in pairs(commands.standing())
        ]

    def is_stale(self, topic: str, streams: Iterable[str], queries: set[tuple[str, str]]) -> bool:
        """Whether `topic` is of a stream or a query that is configured no more."""
        stream, _, rest = topic.removeprefix(f"{self.prefix}/").partition("/")
        if not rest:
            return False
        kind, _, name = rest.partition("/")
        query = name.partition("/")[0]
        return stream not in streams or (kind == "query" and (stream, query) not in queries)


def pairs(standing: Mapping[str, QuerySettings]) -> list[tuple[str, str]]:
    """Stream and query wherever a standing query is asked."""
    return [(stream, name) for name, query in standing.items() for stream in query.streams]


def state(answer: Answer) -> str:
    """An answer as an entity's state: ON or OFF, a number, or a short text."""
    structured = answer.structured
    match answer.question.form.type:
        case AnswerType.YES_NO if isinstance(structured, bool):
            return (ON if structured else OFF).decode()
        case AnswerType.NUMBER if isinstance(structured, (int, float)):
            return f"{structured:.15g}"
        case AnswerType.YES_NO | AnswerType.NUMBER:
            return UNKNOWN
    line = " ".join(answer.text.split()) or UNKNOWN  # an empty payload would be no state at all
    return line if len(line) <= MAX_STATE_CHARS else line[: MAX_STATE_CHARS - 1] + "…"


def as_json(body: Any) -> bytes:
    """JSON in UTF-8, whatever text it holds."""
    return utf8(json.dumps(body, ensure_ascii=False))


def utf8(text: str) -> bytes:
    """Half characters, which UTF-8 has none for, become '?'."""
    return text.encode("utf-8", errors="replace")
