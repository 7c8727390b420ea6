"""The configuration: every setting with its limits and default, frozen once built.

loading.py reads it from a file. Knows nothing of what the settings do: reducer options are checked where the reducer is
built, schemes where sources and sinks are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from stream_sttm import registry, urls
from stream_sttm.config.http import HttpSettings
from stream_sttm.config.queries import QuerySettings
from stream_sttm.config.recall import RecallSettings
from stream_sttm.config.storage import OutboxSettings, StateSettings, StoreSettings
from stream_sttm.config.streams import Section, SourceRules, StreamSettings
from stream_sttm.errors import ConfigError
from stream_sttm.types import MAX_FRESH_FRAMES

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def _url(value: object) -> object:
    if isinstance(value, str):
        try:
            urls.split(value)
        except ConfigError as error:
            raise ValueError(str(error)) from None
    return value


Url = Annotated[str, BeforeValidator(_url)]


class Choice(BaseModel):
    """One of a family by `name`, or its name alone. Any further key is an option of it."""

    model_config = ConfigDict(
        frozen=True, extra="allow", allow_inf_nan=False, hide_input_in_errors=True
    )

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @property
    def options(self) -> dict[str, Any]:
        """The further keys: options for what is named."""
        return dict(self.model_extra or {})


class ReducerSettings(Choice):
    """How visual tokens are merged. Any further key is an option of the named reducer."""

    name: str = Field(
        "sttm_streaming",
        description="A reducer: sttm_streaming, sttm, none, random, subsample, or another package's.",
    )
    at_layer: int | None = Field(
        None, ge=0, description="Merge before this decoder layer; null: the model's own default."
    )
    size_bias: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Weight of log(size) on a merged token's key; null: the model's own default.",
    )


class RetentionSettings(Choice):
    """What a full memory evicts. Any further key is an option of the named policy."""

    name: str = Field(
        "fifo",
        description="A policy: fifo (oldest first), lru (not seen for longest first), tiered, or another package's.",
    )


class MemorySettings(Section):
    """The rolling KV cache of each stream."""

    window_tokens: int = Field(
        4096,
        ge=16,
        description="Visual tokens a stream's memory holds in the layers above the merge.",
    )
    shallow_tokens: int | None = Field(
        None, ge=16, description="The same below the merge layer; null: equal to window_tokens."
    )
    horizon: int | None = Field(
        None,
        ge=64,
        description="Positions a memory may span; null: what the model was trained for.",
    )
    evict_share: float = Field(
        0.125,
        gt=0,
        le=0.5,
        description="Share of the window that is dropped at once when it is full.",
    )
    retention: RetentionSettings = RetentionSettings()
    fresh_frames: int | None = Field(
        None,
        ge=0,
        le=MAX_FRESH_FRAMES,
        description="Newest frames shown unmerged to a question; null: the model's own default.",
    )
    positions: Literal["own", "contiguous"] | None = Field(
        None,
        description="A token's place: own, as if nothing were merged, or contiguous; null: the model's own default.",
    )
    prune_shallow: bool = Field(
        False, description="Whether merged tokens leave the layers below the merge too."
    )
    kv: Literal["auto", "int8", "fp8"] = Field(
        "auto",
        description="Numbers that keys and values are kept in: the model's own, or 8 bits with a scale per token and head.",
    )
    recall: RecallSettings = RecallSettings()


class AnsweringSettings(Section):
    """Limits for questions and their answers."""

    max_new_tokens: int = Field(64, ge=1, le=1024, description="Longest answer in tokens.")
    max_question_chars: int = Field(
        2000, ge=1, le=100_000, description="Longest question in characters."
    )
    max_waiting: int = Field(256, ge=1, description="Questions that may wait; one more is refused.")
    timeout: float = Field(
        30.0, gt=0, description="Seconds after which an unanswered question is given up."
    )
    max_batch: int = Field(16, ge=1, description="Questions of one stream answered together.")


class Settings(BaseSettings):
    """All settings of a service."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="STREAM_STTM__",
        env_nested_delimiter="__",
        hide_input_in_errors=True,
    )
    version: Literal[1] = Field(1, description="Version of this file's format.")
    model: str = Field(
        "demo", min_length=1, description="demo (the bundled tiny model), a hub id, or a folder."
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Number format of the model; auto: bfloat16 on a GPU, float32 else."
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=256,
        description="CPU threads of the model; null: 1 for a small model, which more would only slow down, else one a core.",
    )
    reducer: ReducerSettings = ReducerSettings()
    memory: MemorySettings = MemorySettings()
    answering: AnsweringSettings = AnsweringSettings()
    sources: SourceRules = SourceRules()
    state: StateSettings = StateSettings()
    streams: dict[str, StreamSettings] = Field(
        default_factory=dict, description="The cameras, by name."
    )
    queries: dict[str, QuerySettings] = Field(
        default_factory=dict, description="The standing questions, by name."
    )
    sinks: list[Url] = Field(
        default_factory=list,
        description="Where answers go: mqtt(s)://host:port/prefix, or a webhook, http(s)://host/path#secret=...",
    )
    http: HttpSettings = HttpSettings()
    store: StoreSettings = StoreSettings()
    outbox: OutboxSettings = OutboxSettings()
    watch_file: float | None = Field(
        1.0,
        gt=0,
        description="Seconds between two looks at this file for a change; null: read anew by SIGHUP or the API alone.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is logged."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Use only what `load` merged: file, environment and overrides, in this order."""
        return (init_settings,)

    @property
    def model_note(self) -> str | None:
        """A line where the bundled model watches real cameras, whose answers mean nothing then; else None."""
        real = [
            name
            for name, stream in self.streams.items()
            if not all(url.startswith("scene:") for url in stream.candidates)
        ]
        if self.model != "demo" or not real:
            return None
        shown = ", ".join(real[:3]) + (f" and {len(real) - 3} more" if len(real) > 3 else "")
        return (
            f"model: the bundled model knows only drawn shapes, so its answers about {shown} mean nothing; name a real"
            " model (docs/models.md)"
        )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        faults = contradictions(
            self.model_dump(include={"streams", "queries", "memory"}),
            self.answering.max_question_chars,
        )
        if faults:
            raise ValueError("\n".join(faults))
        return self


def contradictions(tree: Mapping[str, Any], max_question_chars: Any) -> list[str]:
    """List the faults that no single key shows, even in a tree that has other faults."""
    streams, queries = (_maps(tree.get(key)) for key in ("streams", "queries"))
    faults = [
        f"{kind}: the name {urls.shown(name)!r} may hold letters, digits, '_' and '-' only, 64 at most, for it"
        " becomes part of topics and URLs"
        for kind, names in (("streams", streams), ("queries", queries))
        for name in names
        if not _NAME.fullmatch(name)
    ]
    for name, query in queries.items():
        named = at(query, ["streams"])
        for stream in named if isinstance(named, list) else ():
            if isinstance(stream, str) and stream not in streams:
                hint = registry.suggest(stream, [urls.shown(known) for known in sorted(streams)])
                faults.append(
                    f"queries.{urls.shown(name)}.streams: there is no stream {urls.shown(stream)!r}{hint}"
                )
        if at(query, ["recall"]) == "always" and at(tree, ["memory", "recall", "when"]) == "never":
            faults.append(
                f"queries.{urls.shown(name)}.recall: always, but memory.recall.when is never, so nothing is kept"
            )
        ask = at(query, ["ask"])
        longest = (
            int(max_question_chars)
            if str(max_question_chars).isdecimal()
            else AnsweringSettings().max_question_chars
        )
        if isinstance(ask, str) and len(ask) > longest:
            faults.append(
                f"queries.{urls.shown(name)}.ask: has {len(ask)} characters; answering.max_question_chars is {longest}"
            )
    return faults


def at(node: Any, location: Sequence[str]) -> Any:
    """Return the value at `location` of a tree of maps and lists, None where there is none."""
    for part in location:
        if isinstance(node, dict):
            node = node.get(part)
        elif isinstance(node, list) and part.isdecimal() and int(part) < len(node):
            node = node[int(part)]
        else:
            return None
    return node


def _maps(node: Any) -> dict[str, Any]:
    return node if isinstance(node, dict) else {}
