"""The part of the service that a sink may use: questions, switches, triggers, and the state to show.

A protocol, and all that a sink knows of the service. Its methods are called on the event loop and must not block it,
except `snapshot`, which is called from a thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from stream_sttm.config.queries import QuerySettings
from stream_sttm.config.settings import AnsweringSettings
from stream_sttm.types import Answer, Question, StreamStatus


class Commands(Protocol):
    """The service as a sink may use it. A method raises StreamSTTMError, with the reason, where it can't."""

    @property
    def model(self) -> str:
        """The model's name."""
        ...

    @property
    def answering(self) -> AnsweringSettings:
        """Limits for questions."""
        ...

    @property
    def is_switchable(self) -> bool:
        """Whether streams and queries can be enabled and disabled while the service runs."""
        ...

    def streams(self) -> list[StreamStatus]:
        """Return every stream's status, in the configuration's order."""
        ...

    def standing(self) -> Mapping[str, QuerySettings]:
        """Return the standing queries by name."""
        ...

    def is_query_enabled(self, query: str, stream: str) -> bool:
        """Return whether a query is asked of a stream now."""
        ...

    def newest(self, query: str, stream: str) -> Answer | None:
        """Return the newest announced answer of a query on a stream, None where nobody knows one now."""
        ...

    def stats(self) -> dict[str, Any]:
        """Return the service's statistics as JSON."""
        ...

    def snapshot(self, stream: str) -> bytes | None:
        """Return the stream's newest picture as JPEG, None before the first. Called from a thread."""
        ...

    def resend(self) -> None:
        """Report every stream's status again."""
        ...

    async def ask(self, question: Question) -> Answer:
        """Answer a question. The answer is also delivered like any other."""
        ...

    async def set_stream_enabled(self, stream: str, is_enabled: bool) -> None:
        """Enable or disable a stream."""
        ...

    async def set_query_enabled(self, query: str, stream: str, is_enabled: bool) -> None:
        """Enable or disable a query on a stream."""
        ...

    async def trigger(self, query: str, stream: str) -> None:
        """Ask a standing query of a stream now, whatever its interval."""
        ...

    def sighted(self, payload: bytes) -> None:
        """Take a message of Frigate's topics `events` or `reviews`. Counts and logs an invalid one, never raises."""
        ...
