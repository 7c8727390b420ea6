"""The MQTT topics of a service and their payloads, from answers, events, statuses and the configuration.

Pure: names and payloads, no connection. docs/mqtt.md has the table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, assert_never

from stream_sttm.config.queries import QuerySettings
from stream_sttm.sinks.commands import Commands
from stream_sttm.sinks.mqtt.message import Message
from stream_sttm.types import Answer, AnswerType, Event, StreamState, StreamStatus

MAX_STATE_CHARS = 255  # Home Assistant's limit for a state
ONLINE, OFFLINE, STOPPED = b"online", b"offline", b"stopped"
ON, OFF = b"ON", b"OFF"
UNKNOWN = "None"  # Home Assistant's word for an unknown state


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics under one prefix."""

    prefix: str

    @property
    def available(self) -> str:
        """The topic that says whether the service runs, also that of its last will."""
        return f"{self.prefix}/available"

    @property
    def online(self) -> Message:
        """The message that the service runs."""
        return Message(self.available, ONLINE, is_retained=True)

    @property
    def stats(self) -> str:
        """The topic of the service's statistics."""
        return f"{self.prefix}/stats"

    @property
    def events(self) -> str:
        """The topic of every event of every query."""
        return f"{self.prefix}/events"

    @property
    def on_connect(self) -> str:
        """The topic on which a client that has just connected asks for all states again."""
        return f"{self.prefix}/onConnect"

    def of_stream(self, stream: str, *rest: str) -> str:
        """Return a topic of a stream."""
        return "/".join((self.prefix, stream, *rest))

    def of_query(self, stream: str, query: str, *rest: str) -> str:
        """Return a topic of a query on one stream."""
        return self.of_stream(stream, "query", query, *rest)

    def messages(self, item: Answer | Event, *, published_at: float) -> list[Message]:
        """Return what is published once, not retained, of an answer or event."""
        if isinstance(item, Answer):
            return [self.answer(item, published_at=published_at)]
        return self.event(item, published_at=published_at)

    def answer(self, answer: Answer, *, published_at: float) -> Message:
        """Return an answer, on its question's or its query's topic."""
        question = answer.question
        topic = (
            self.of_stream(question.stream, "ask", question.id, "answer")
            if question.query is None
            else self.of_query(question.stream, question.query, "answer")
        )
        return Message(topic, as_json(answer.as_dict(published_at=published_at)))

    def retained(self, answer: Answer, *, published_at: float) -> list[Message]:
        """Return what is retained of a standing query's answer: a short state, and all of it as attributes."""
        stream, query = answer.question.stream, answer.question.query
        if query is None:
            return []
        body = as_json(answer.as_dict(published_at=published_at))
        return [
            Message(self.of_query(stream, query, "state"), utf8(state(answer)), is_retained=True),
            Message(self.of_query(stream, query, "attributes"), body, is_retained=True),
        ]

    def unknown(self, stream: str, query: str) -> Message:
        """Return the state of a query whose answer nobody knows now."""
        return Message(self.of_query(stream, query, "state"), utf8(UNKNOWN), is_retained=True)

    def event(self, event: Event, *, published_at: float) -> list[Message]:
        """Return an event twice: for all readers, and for Home Assistant's entity of its query."""
        body = event.as_dict(published_at=published_at)
        entity = self.of_query(event.stream, event.query, "event")
        return [
            Message(self.events, as_json(body)),
            Message(entity, as_json({"event_type": event.kind.value, **body})),
        ]

    def status(self, status: StreamStatus) -> list[Message]:
        """Return a stream's state and details."""
        root = self.of_stream(status.stream, "status")
        return [
            Message(root, utf8(status.state.value), is_retained=True),
            Message(f"{root}/attributes", as_json(status.as_dict()), is_retained=True),
        ]

    def switches(self, commands: Commands) -> list[Message]:
        """Return whether each stream and each query is enabled."""
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
        """Return whether `topic` belongs to a stream or query that is no longer configured."""
        stream, _, rest = topic.removeprefix(f"{self.prefix}/").partition("/")
        if not rest:
            return False
        kind, _, name = rest.partition("/")
        query = name.partition("/")[0]
        return stream not in streams or (kind == "query" and (stream, query) not in queries)


def pairs(standing: Mapping[str, QuerySettings]) -> list[tuple[str, str]]:
    """Return each stream and query for which a standing query is asked."""
    return [(stream, name) for name, query in standing.items() for stream in query.streams]


def state(answer: Answer) -> str:
    """Return an answer as an entity's state: ON or OFF, a number, or a short text."""
    structured, answer_type = answer.structured, answer.question.form.type
    match answer_type:
        case AnswerType.YES_NO if isinstance(structured, bool):
            return (ON if structured else OFF).decode()
        case AnswerType.NUMBER if isinstance(structured, (int, float)):
            return f"{structured:.15g}"
        case AnswerType.YES_NO | AnswerType.NUMBER:
            return UNKNOWN
        case AnswerType.TEXT | AnswerType.CHOICE | AnswerType.JSON:
            return short_text(answer.text)
        case _:
            assert_never(answer_type)


def short_text(text: str) -> str:
    """Return a text as a state: one short line, and UNKNOWN only where it is empty."""
    line = " ".join(text.split())
    if not line:
        return UNKNOWN  # an empty payload would clear the state
    if line == UNKNOWN:
        return line.lower()  # said, and not unknown
    return line if len(line) <= MAX_STATE_CHARS else line[: MAX_STATE_CHARS - 1] + "…"


def as_json(body: Any) -> bytes:
    """Return JSON in UTF-8, whatever text it holds."""
    return utf8(json.dumps(body, ensure_ascii=False, allow_nan=False))


def utf8(text: str) -> bytes:
    """Encode in UTF-8, with '?' for halves of surrogate pairs."""
    return text.encode("utf-8", errors="replace")
