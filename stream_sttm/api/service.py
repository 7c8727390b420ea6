"""What the HTTP interface needs of whatever runs behind it: nothing but this protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from stream_sttm.config.settings import AnsweringSettings
from stream_sttm.engine.outcomes import Mosaic
from stream_sttm.types import Answer, Question, StreamStatus


class Service(Protocol):
    """What runs behind the interface; all but the pictures is called on the event loop and must not block it."""

    @property
    def model(self) -> str:
        """The model's name."""
        ...

    @property
    def answering(self) -> AnsweringSettings:
        """Limits for questions and answers, as they are now."""
        ...

    def streams(self) -> list[StreamStatus]:
        """Every configured stream, in the configuration's order."""
        ...

    def queries(self) -> list[dict[str, Any]]:
        """Every standing query as JSON."""
        ...

    def readiness(self) -> tuple[bool, str]:
        """Whether questions can be answered, and if not, why."""
        ...

    def snapshot(self, stream: str) -> bytes | None:
        """The stream's newest picture as JPEG, None before the first; called from a thread."""
        ...

    def remembered(self, stream: str) -> tuple[bytes, float] | None:
        """The newest remembered picture and its wall clock, None before the first; called from a thread."""
        ...

    async def mosaic(self, stream: str) -> Mosaic | None:
        """What stands for the stream's newest picture in its memory, None before the first."""
        ...

    async def ask(self, question: Question, on_text: Callable[[str], None] | None = None) -> Answer:
        """The answer to a question asked now; raises QuestionError where there is none within its timeout.

        `on_text` is told the words of a streamed answer so far, as they come.
        """
        ...
