"""Handle what arrives on the MQTT topics that the service reads: questions, switches, triggers.

An answer is delivered like any other, and published here on an MQTT 5 response topic as well. A fault is one line on
the response topic or on `<topic>/error`. Retained messages are not handled.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

from pydantic import ConfigDict, Field, ValidationError

from stream_sttm.config.queries import AskSettings
from stream_sttm.config.question_check import check, fault_lines
from stream_sttm.errors import QuestionRejected, StreamSTTMError, TooManyQuestions
from stream_sttm.sinks.commands import Commands
from stream_sttm.sinks.mqtt.message import Incoming, Message
from stream_sttm.sinks.mqtt.topics import OFF, ON, Topics, as_json
from stream_sttm.sinks.mqtt.url import Endpoint
from stream_sttm.types import Question

_log = logging.getLogger(__name__)
MAX_REQUEST_BYTES = 64 * 1024
OUTCOMES = ("done", "refused", "dropped")
_MAX_TOPIC_BYTES = 1000
CALLER = "mqtt:"  # no token is called so
_AT_ONCE = 32  # messages handled at the same time
_IDS = 1000  # ids remembered, so that none is answered twice
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_ASK = ("+/ask",)
_READ = {  # by the option `commands`
    "none": (),
    "ask": _ASK,
    "all": (*_ASK, "+/enabled/set", "+/query/+/enabled/set", "+/query/+/trigger"),
}


class Asked(AskSettings):
    """A question as a message. `id` becomes part of the answer's topic."""

    model_config = ConfigDict(strict=True)
    question: str = Field(description="The question, in words.")
    id: str | None = Field(
        None, pattern=f"^{_NAME.pattern}$", description="Its id; else one is made."
    )
    timeout: float | None = Field(
        None, gt=0, le=300, allow_inf_nan=False, description="Seconds to wait for the answer."
    )


class Refused(Exception):  # noqa: N818 - what is refused is a message
    """A message is refused: why, and the question's id, if it had one."""

    def __init__(self, why: str, asked: str | None = None) -> None:
        super().__init__(why)
        self.why, self.asked = why, asked


class Requests:
    """Handles messages through the service's `commands`, as far as `endpoint` has them taken.

    `reply` publishes a message. `count` is called with each outcome: done, refused, or dropped where too many come at
    once.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        commands: Commands,
        *,
        reply: Callable[[Message], Awaitable[None]],
        count: Callable[[str], None],
    ) -> None:
        self._topics, self._commands = Topics(endpoint.prefix), commands
        self._read, frigate = _READ[endpoint.commands], endpoint.frigate
        # no reply goes to a topic under these
        self._foreign = (endpoint.prefix, *filter(None, [endpoint.discovery]))
        # Frigate's messages are no requests and get no reply
        self._sightings = [] if frigate is None else [f"{frigate}/events", f"{frigate}/reviews"]
        self._send, self._count = reply, count
        self._ids: deque[str] = deque(maxlen=_IDS)
        self._working: set[asyncio.Task[None]] = set()

    @property
    def subscriptions(self) -> list[str]:
        """The topics to subscribe to."""
        return [*(f"{self._topics.prefix}/{topic}" for topic in self._read), *self._sightings]

    def concerns(self, message: Incoming) -> bool:
        """Return whether `message` is to be handled here."""
        is_one = message.topic in self._sightings or bool(self._parts(message.topic))
        return is_one and not message.is_retained

    def begin(self, message: Incoming, group: asyncio.TaskGroup) -> None:
        """Handle `message` in a task of `group`. Where too many are being handled, refuse it or drop it."""
        if message.topic in self._sightings:
            self._commands.sighted(message.payload)
            return
        if len(self._working) >= 2 * _AT_ONCE:
            self._count("dropped")
            return
        work = self._refuse(message) if len(self._working) >= _AT_ONCE else self._do(message)
        task = group.create_task(work, name=f"request[{message.topic}]")
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    def stop(self) -> None:
        """Cancel what is being handled."""
        for task in self._working:
            task.cancel()

    async def _refuse(self, message: Incoming) -> None:
        await self._fault(message, "too much is being asked at once; try again in a second")

    async def _do(self, message: Incoming) -> None:
        try:
            match self._parts(message.topic):
                case [stream, "ask"]:
                    await self._ask(stream, message)
                case [stream, "enabled", "set"]:
                    await self._commands.set_stream_enabled(stream, _is_on(message.payload))
                case [stream, "query", query, "enabled", "set"]:
                    is_on = _is_on(message.payload)
                    await self._commands.set_query_enabled(query, stream, is_on)
                case [stream, "query", query, "trigger"]:
                    await self._commands.trigger(query, stream)
            self._count("done")
        except Refused as refused:
            await self._fault(message, refused.why, asked=refused.asked)
        except StreamSTTMError as error:
            await self._fault(message, str(error))
        except Exception as error:  # noqa: BLE001 - a message ends nothing but itself
            _log.error(
                "mqtt: a message on %s could not be handled: %s", message.topic, repr(error)[:200]
            )
            await self._fault(message, "could not be handled; the log says why")

    async def _ask(self, stream: str, message: Incoming) -> None:
        asked = _read(message.payload)
        if asked.priority > 0:
            line = "priority: above 0 needs a token, which MQTT has not; ask over HTTP"
            raise Refused(line, asked.id)
        question = Question(
            id=asked.id or uuid4().hex,
            stream=stream,
            text=asked.question,
            asked_at=time.time(),
            max_new_tokens=asked.max_new_tokens or self._commands.answering.max_new_tokens,
            timeout=asked.timeout,
            form=asked.form,
            window_s=asked.window_s,
            fresh_frames=asked.fresh_frames,
            recall=asked.recall,
            priority=asked.priority,
            caller=CALLER,
        )
        try:
            check(question, self._commands.answering)
        except QuestionRejected as error:
            raise Refused(str(error), asked.id) from error
        if question.id in self._ids:
            raise Refused("id: was used before; give each question one of its own", asked.id)
        self._ids.append(question.id)
        try:
            answer = await self._commands.ask(question)
        except StreamSTTMError as error:
            if isinstance(error, TooManyQuestions):
                self._ids.remove(question.id)  # it may be asked again
            raise Refused(str(error), question.id) from error
        if self._response_topic(message) is not None:
            await self._send(self._reply(message, answer.as_dict(published_at=time.time())))

    def _parts(self, topic: str) -> list[str]:
        """Return the topic's parts below the prefix. None where it is not one of ours or has an invalid name."""
        parts = topic.removeprefix(f"{self._topics.prefix}/").split("/")
        if topic == "/".join((self._topics.prefix, *parts)) and all(
            _NAME.fullmatch(part) for part in parts
        ):
            match parts:
                case [_, *rest] if self._is_read(rest):
                    return parts
        return []

    def _is_read(self, rest: list[str]) -> bool:
        """Return whether a topic is one of those read, by its parts below the stream."""
        match rest:
            case ["ask"]:
                topic = "+/ask"
            case ["enabled", "set"]:
                topic = "+/enabled/set"
            case ["query", _, *verb]:
                topic = "/".join(("+/query/+", *verb))
            case _:
                return False
        return topic in self._read

    def _response_topic(self, message: Incoming) -> str | None:
        """Return the response topic, None where there is none or where no reply may go."""
        topic = message.response_topic
        if not topic or len(topic.encode()) > _MAX_TOPIC_BYTES or topic.startswith("$"):
            return None
        if any(char in topic for char in "+#\0"):
            return None
        is_foreign = any(f"{topic}/".startswith(f"{prefix}/") for prefix in self._foreign)
        return None if is_foreign else topic

    def _reply(self, message: Incoming, body: dict[str, Any]) -> Message:
        topic = self._response_topic(message) or f"{message.topic.removesuffix('/set')}/error"
        return Message(topic, as_json(body), correlation=message.correlation)

    async def _fault(self, message: Incoming, why: str, *, asked: str | None = None) -> None:
        self._count("refused")
        body = {"error": why} | ({} if asked is None else {"id": asked})
        await self._send(self._reply(message, body))


def _read(payload: bytes) -> Asked:
    """Parse a question from JSON or plain text. Raises Refused."""
    if len(payload) > MAX_REQUEST_BYTES:
        raise Refused(f"has {len(payload)} bytes; at most {MAX_REQUEST_BYTES} are read")
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        raise Refused("is no valid UTF-8") from None
    if not text.lstrip().startswith("{"):
        return Asked(question=text)
    try:
        return Asked.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return _read_surrogates(text, first["ctx"]["error"])
        raise Refused(fault_lines(error)) from None


def _read_surrogates(text: str, why: str) -> Asked:
    """Parse what is JSON for Python alone: half of a surrogate pair, escaped. Checks name the field that has it."""
    try:
        return Asked.model_validate(json.loads(text))
    except ValidationError as error:
        raise Refused(fault_lines(error)) from None
    except (ValueError, RecursionError):
        raise Refused(f"is not JSON: {why}") from None


def _is_on(payload: bytes) -> bool:
    word = payload[:16].strip().upper()
    if word not in (ON, OFF):
        raise QuestionRejected("must be ON or OFF")
    return word == ON
