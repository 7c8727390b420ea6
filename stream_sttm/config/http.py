"""The settings of the HTTP interface: where it listens and who may call it.

A token is known only by its hash. What a scope allows is decided in api/auth.py.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator

from stream_sttm.config.streams import Section

_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Scope(StrEnum):
    """What a token allows."""

    READ = "read"
    ASK = "ask"
    PUBLISH = "publish"
    ADMIN = "admin"


class TokenSettings(Section):
    """A personal token. `stream-sttm token NAME` makes one."""

    name: str = Field(
        pattern="^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$", description="Who holds it, for the log."
    )
    hash: str = Field(
        description="sha256: and 64 hexadecimal digits; the token itself is not kept."
    )
    scopes: list[Scope] = Field(
        [Scope.READ, Scope.ASK],
        min_length=1,
        description="What it allows: read, ask, publish (WHIP), admin (all of it, switches and reloading too).",
    )
    streams: list[str] | None = Field(
        None, min_length=1, description="The only streams that it knows; null: all."
    )
    rate: float | None = Field(
        None, gt=0, description="Requests per second instead of http.rate; twice as many at once."
    )

    max_priority: int = Field(
        0,
        ge=0,
        le=100,
        description="Greatest priority that its questions may have; with the scope admin any.",
    )

    @field_validator("hash")
    @classmethod
    def _is_a_hash(cls, text: str) -> str:
        if not _HASH.fullmatch(text):
            raise ValueError(
                "must be sha256: and 64 hexadecimal digits, as `stream-sttm token` prints"
            )
        return text


class HttpSettings(Section):
    """The HTTP interface."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    token: SecretStr | None = Field(
        None,
        min_length=1,
        description="Bearer token that allows everything; this or tokens is required when host is not a loopback address.",
    )
    tokens: list[TokenSettings] = Field(
        [], description="Further tokens, kept as hashes, each with scopes of its own."
    )
    rate: float = Field(
        50.0, gt=0, description="Requests per second and token; twice as many at once."
    )
    cors: list[str] = Field(
        [],
        description="Origins whose pages may call, such as https://home.example; none by default.",
    )

    @field_validator("cors")
    @classmethod
    def _are_origins(cls, origins: list[str]) -> list[str]:
        for origin in origins:
            if not re.fullmatch(r"https?://[A-Za-z0-9.\-\[\]:]+", origin):
                raise ValueError("each must be an origin such as https://home.example:8443")
        return origins

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if self.token is None and not self.tokens and self.host not in _LOOPBACK:
            raise ValueError(
                f"host {self.host!r} is reachable from outside: set http.token to a ${{NAME}} from the environment, "
                "add one of http.tokens, or bind 127.0.0.1"
            )
        names = [one.name for one in self.tokens]
        if len(set(names)) < len(names):
            raise ValueError("tokens: two have the same name")
        return self
