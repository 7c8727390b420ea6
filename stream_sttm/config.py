"""The configuration: one YAML file a person can read, checked whole, frozen after loading.

Order: defaults < YAML < environment (`STREAM_STTM__MEMORY__WINDOW_TOKENS`) < overrides of the command line. Secrets
come in by `${NAME}` from the environment. Every fault is reported at once, with its path. Knows nothing of what the
settings do; reducer options are checked where the reducer is built.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin
from urllib.parse import quote

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from stream_sttm import registry, urls
from stream_sttm.errors import ConfigError

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def _url(value: object) -> object:
    if isinstance(value, str):
        try:
            urls.split(value)
        except ConfigError as error:
            raise ValueError(str(error)) from None
    return value


Url = Annotated[str, BeforeValidator(_url)]


class Section(BaseModel):
    """A frozen part of the configuration that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ReducerSettings(BaseModel):
    """How visual tokens are merged; any further key is an option of the named reducer."""

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True)
    name: str = Field(
        "sttm_streaming", description="A reducer: sttm_streaming, sttm, none, or another package's."
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

    @property
    def options(self) -> dict[str, Any]:
        """The further keys, as options for the reducer."""
        return dict(self.model_extra or {})


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
    fresh_frames: int | None = Field(
        None,
        ge=0,
        le=4,
        description="Newest frames shown unmerged to a question; null: the model's own default.",
    )


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


class StreamSettings(Section):
    """One camera."""

    source: Url = Field(description="rtsp:// rtsps:// http(s):// file:// whep(s):// scene://")
    fps: float = Field(2.0, gt=0, le=30, description="Frames per second that are looked at.")
    clip_frames: int = Field(
        2, ge=1, le=64, description="Frames that are encoded and merged together."
    )
    max_side: int = Field(
        640,
        ge=32,
        le=4096,
        description="Longer side of a frame in pixels; larger pictures are scaled down at the source.",
    )
    stall_after: float = Field(
        5.0,
        gt=0,
        description="Seconds without a frame after which the camera counts as stalled and is reopened.",
    )


class QuerySettings(Section):
    """One standing question."""

    streams: list[str] = Field(min_length=1, description="Names of the streams it is asked of.")
    ask: str = Field(min_length=1, max_length=100_000, description="The question, in words.")
    every: float = Field(10.0, gt=0, description="Seconds of stream between two answers.")
    announce: Literal["always", "on_change"] = Field(
        "on_change", description="Publish every answer, or only one that differs from the last."
    )
    max_new_tokens: int | None = Field(
        None, ge=1, le=1024, description="Longest answer in tokens; null: answering.max_new_tokens."
    )


class HttpSettings(Section):
    """The HTTP interface."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    token: SecretStr | None = Field(
        None,
        description="Bearer token that /api needs; required when host is not a loopback address.",
    )

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if self.token is None and self.host not in ("127.0.0.1", "localhost", "::1"):
            raise ValueError(
                f"host {self.host!r} is reachable from outside: set http.token to a ${{NAME}} from the environment, or bind 127.0.0.1"
            )
        return self


class StoreSettings(Section):
    """Where answers are kept."""

    path: str = Field(
        "answers.db", description="SQLite file; ':memory:' keeps them for this run only."
    )
    keep_days: float | None = Field(
        None, gt=0, description="Days after which an answer is deleted; null: kept for ever."
    )


class Settings(BaseSettings):
    """Everything a service is told."""

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
        description="CPU threads the model computes with; null: 1 for a small model, which waiting for each other would only slow down, else one a core.",
    )
    reducer: ReducerSettings = ReducerSettings()
    memory: MemorySettings = MemorySettings()
    answering: AnsweringSettings = AnsweringSettings()
    streams: dict[str, StreamSettings] = Field(
        default_factory=dict, description="The cameras, by name."
    )
    queries: dict[str, QuerySettings] = Field(
        default_factory=dict, description="The standing questions, by name."
    )
    sinks: list[Url] = Field(
        default_factory=list, description="Where answers go: mqtt(s)://host:port/prefix."
    )
    http: HttpSettings = HttpSettings()
    store: StoreSettings = StoreSettings()
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
        """Only what `load` merged: file, environment and overrides in their order."""
        return (init_settings,)

    @field_validator("streams", "queries")
    @classmethod
    def _topic_safe(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not _NAME.match(name):
                raise ValueError(
                    f"the name {name!r} may hold letters, digits, '_' and '-' only, 64 at most, for it becomes part of topics and URLs"
                )
        return value

    @model_validator(mode="after")
    def _queries_name_streams(self) -> Self:
        for name, query in self.queries.items():
            for stream in query.streams:
                if stream not in self.streams:
                    hint = registry.suggest(stream, sorted(self.streams))
                    raise ValueError(f"queries.{name}.streams: there is no stream {stream!r}{hint}")
            if len(query.ask) > self.answering.max_question_chars:
                raise ValueError(
                    f"queries.{name}.ask: has {len(query.ask)} characters; answering.max_question_chars is {self.answering.max_question_chars}"
                )
        return self


def load(
    path: str | Path | None,
    *,
    overrides: Mapping[str, Any] | None = None,
    check: Callable[[Mapping[str, Any]], list[str]] | None = None,
) -> Settings:
    """Read, expand and check a configuration file; raises ConfigError listing every fault, a line each.

    `overrides` are dotted keys (`"http.port": 0`) of the command line, which win over file and environment. `check`
    finds further faults in the merged tree, for what this layer may not know (which schemes and reducers exist).
    """
    tree, faults = _expand(_read(path), "") if path is not None else ({}, [])
    environment, unknown = _environment()
    tree = _merged(_merged(tree, environment), _nested(overrides or {}))
    where = f"{path}: " if path is not None else ""
    settings: Settings | None = None
    try:
        settings = Settings(**tree)
    except ValidationError as error:
        faults += [_fault(item) for item in error.errors()]
    faults += check(tree) if check is not None else []
    if faults or unknown or settings is None:
        raise ConfigError("\n".join([*(f"{where}{fault}" for fault in faults), *unknown]))
    return settings


def _environment() -> tuple[dict[str, Any], list[str]]:
    """The settings that the environment gives, and a fault for each variable of ours that names none."""
    prefix = str(Settings.model_config.get("env_prefix"))
    given = [name for name in os.environ if name.upper().startswith(prefix)]
    known = list(Settings.model_fields)
    faults = [
        f"environment: {name} names no setting{registry.suggest(word, known)}"
        for name in given
        if (word := name[len(prefix) :].split("__")[0].lower()) not in known
    ]
    return EnvSettingsSource(Settings)(), faults


def _nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in dotted.items():
        *parents, last = path.split(".")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """`low` with `high` laid over it, maps merged key by key, anything else replaced."""
    tree = dict(low)
    for key, value in high.items():
        under = tree.get(key)
        tree[key] = (
            _merged(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
        )
    return tree


def _read(path: str | Path) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"{path}: can't read the configuration: {reason}") from error
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(
            f"{path}: not valid YAML{at}: {getattr(error, 'problem', 'unreadable')}"
        ) from error
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise ConfigError(f"{path}: the configuration must be a map of keys such as 'streams:'")
    return tree


def _expand(node: Any, path: str) -> tuple[Any, list[str]]:
    """`node` with every ${NAME} replaced from the environment, and a fault for each that is not set."""
    if isinstance(node, str):
        missing = [name for name in _VARIABLE.findall(node) if name not in os.environ]
        faults = [f"{path}: the environment has no variable {name!r}" for name in missing]
        return _VARIABLE.sub(_value, node), faults
    if isinstance(node, dict):
        pairs = {key: _expand(value, f"{path}.{key}".lstrip(".")) for key, value in node.items()}
        return {k: v[0] for k, v in pairs.items()}, [f for v in pairs.values() for f in v[1]]
    if isinstance(node, list):
        items = [_expand(value, f"{path}[{index}]") for index, value in enumerate(node)]
        return [item[0] for item in items], [f for item in items for f in item[1]]
    return node, []


def _value(match: re.Match[str]) -> str:
    """A variable's value; inside a URL it is percent-encoded, so that any password fits."""
    value = os.environ.get(match[1], "")
    return quote(value, safe="") if "://" in match.string[: match.start()] else value


def _fault(error: Any) -> str:
    """One line for one of pydantic's errors: path, what is wrong, what to do."""
    path = ".".join(str(part) for part in error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = (
            f"unknown key{registry.suggest(str(error['loc'][-1]), _keys_at(error['loc'][:-1]))}"
        )
    elif error["type"] == "missing":
        message = "missing"
    return f"{path}: {message}" if path else message


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    """The keys that the section at `location` knows."""
    node: Any = Settings
    for part in location:
        node = get_args(node)[1] if get_origin(node) is dict else node.model_fields[part].annotation
    return sorted(getattr(node, "model_fields", {}))
