"""What the other side of a sink may ask of the service: questions, switches, triggers, and what there is to see.

A protocol alone: a sink knows the service by nothing else. All of it is called on the event loop and must not block
it, but `snapshot`, which is called from a thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from stream_sttm.config.queries import QuerySettings
from stream_sttm.config.settings import AnsweringSettings
from stream_sttm.types import Answer, Question, StreamStatus


class Commands(Protocol):
    """The service, as a sink may use it; what can't be done raises a StreamSTTMError that says why."""

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
        """Every stream's status now, in the configuration's order."""
        ...

    def standing(self) -> Mapping[str, QuerySettings]:
        """The standing queries by name."""
        ...

    def is_query_enabled(self, query: str, stream: str) -> bool:
        """Whether a query is asked of a stream now."""
        ...

    def stats(self) -> dict[str, Any]:
        """The service's numbers as JSON."""
        ...

    def snapshot(self, stream: str) -> bytes | None:
        """The stream's newest picture as JPEG, None before the first; called from a thread."""
        ...

    def resend(self) -> None:
        """Report every stream's status anew."""
        ...

    async def ask(self, question: Question) -> Answer:
        """The answer to a question asked now; it is also delivered like any other."""
        ...

    async def set_stream_enabled(self, stream: str, is_enabled: bool) -> None:
        """Watch a stream, or leave it out."""
        ...

    async def set_query_enabled(self, query: str, stream: str, is_enabled: bool) -> None:
        """Ask a query of a stream, or leave it out."""
        ...

    async def trigger(self, query: str, stream: str) -> None:
        """Ask a standing query of a stream now, whatever its rhythm."""
        ...

    def sighted(self, payload: bytes) -> None:
        """Take a message of Frigate's topics `events` or `reviews`; garbage is counted and told, never raised."""
        ...
