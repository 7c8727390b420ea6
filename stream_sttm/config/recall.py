"""The settings of recall: what is kept of the past beyond each memory, and when it is searched."""

from __future__ import annotations

from pydantic import Field

from stream_sttm.config.streams import Section
from stream_sttm.types import Recall


class RecallSettings(Section):
    """Recall: what leaves the memory is kept beside it, for questions that look back."""

    when: Recall = Field(
        "never",
        description="never: nothing is kept; auto: for questions that look back; always: for every one. A question may say its own.",
    )
    tokens: int = Field(
        256, ge=1, le=65_536, description="Visual tokens that a question brings back at most."
    )
    log: int = Field(
        0,
        ge=0,
        le=64,
        description="Earlier answers of standing questions that are told to a question which looks back, a line each; for models that follow instructions.",
    )
    bytes: int = Field(
        256 << 20, ge=1 << 16, description="Bytes that are kept of a stream, the newest first."
    )
    max_age: float = Field(3600.0, gt=0, description="Seconds for which something is kept at most.")
    dir: str | None = Field(
        None,
        min_length=1,
        description="Folder on a disk to keep it in while the service runs; null: in the host's memory. state.dir makes it outlast a restart.",
    )
