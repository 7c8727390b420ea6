"""The protocol of the service behind the HTTP interface, and all that the interface knows of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from stream_sttm.config.settings import AnsweringSettings
from stream_sttm.engine.outcomes import Mosaic
from stream_sttm.types import Answer, Question, StreamStatus


class Service(Protocol):
    """The service. All but the methods for pictures are called on the event loop and must not block it."""

    @property
    def model(self) -> str:
        """The model's name."""
        ...

    @property
    def model_note(self) -> str | None:
        """What people must know of the model's answers, None where there is nothing."""
        ...

    @property
    def answering(self) -> AnsweringSettings:
        """The current limits for questions and answers."""
        ...

    def streams(self) -> list[StreamStatus]:
        """Return every stream's status, in the configuration's order."""
        ...

    def queries(self) -> list[dict[str, Any]]:
        """Return every standing query as JSON."""
        ...

    def readiness(self) -> tuple[bool, str]:
        """Return whether questions can be answered, and if not, why."""
        ...

    def snapshot(self, stream: str) -> bytes | None:
        """Return the stream's newest picture as JPEG, None before the first. Called from a thread."""
        ...

    def remembered(self, stream: str) -> tuple[bytes, float] | None:
        """Return the newest remembered picture and its wall clock, None before the first. Called from a thread."""
        ...

    async def mosaic(self, stream: str) -> Mosaic | None:
        """Return the merged tokens of the stream's newest picture as tiles, None before the first."""
        ...

    async def ask(self, question: Question, on_text: Callable[[str], None] | None = None) -> Answer:
        """Answer a question. Raises QuestionError where there is no answer within its timeout.

        `on_text` is called with the text so far of a streamed answer.
        """
        ...
