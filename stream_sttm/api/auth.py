"""Who calls, by a bearer token, and what that allows.

Tokens are compared by their SHA-256, in constant time: they are 256 random bits, so a slow hash would add nothing.
Knows paths and methods, no routes.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from stream_sttm.api.static import PAGE
from stream_sttm.config.http import HttpSettings, Scope

MAIN = "main"  # the name of http.token
OPEN_PATHS = frozenset(
    [
        *PAGE,
        *("/openapi.json", "/healthz", "/readyz"),
        *(f"/v1/health/{state}" for state in ("live", "ready", "startup")),
    ]
)
_ASKING = ("/api/v1/ask", "/v1/chat/completions")
_FILTERED = (
    *_ASKING,
    "/api/v1/streams",
    "/v1/models",
)  # their routes look at the caller themselves
_STREAM = "/api/v1/streams/{name}"
_NAME_AT = _STREAM.split("/").index("{name}")
_BY_STREAM = (
    *("/api/v1/answers", "/api/v1/answers/export"),
    *("/api/v1/events", "/api/v1/events/history", "/api/v1/ws"),
)
_NEEDED = {  # by route; any other needs what its method does
    **dict.fromkeys(_ASKING, Scope.ASK),
    f"{_STREAM}/whip": Scope.PUBLISH,
    f"{_STREAM}/whip/{{session}}": Scope.PUBLISH,
    "/api/v1/config": Scope.ADMIN,
}


def new_token() -> tuple[str, str]:
    """A token and its hash as the configuration keeps it."""
    token = secrets.token_urlsafe(32)
    return token, _hash(token.encode())


def _hash(token: bytes) -> str:
    return f"sha256:{hashlib.sha256(token).hexdigest()}"


@dataclass(eq=False)
class Caller:
    """Whoever holds a token: what it allows, and of which streams (None: all)."""

    name: str
    scopes: frozenset[Scope]
    streams: frozenset[str] | None
    rate: float
    max_priority: int = 0
    clock: Callable[[], float] = time.monotonic
    _left: float = field(init=False)
    _at: float = field(init=False)

    def __post_init__(self) -> None:
        self._left, self._at = self._most, self.clock()

    @property
    def _most(self) -> float:
        return max(1.0, 2 * self.rate)

    def take(self) -> float:
        """Count a request; returns seconds until there may be one, 0 where it may be now."""
        now = self.clock()
        self._left = min(self._most, self._left + (now - self._at) * self.rate)
        self._at = now
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return (1 - self._left) / self.rate

    def may_see(self, stream: str) -> bool:
        """Whether a stream is one of its own."""
        return self.streams is None or stream in self.streams

    def may_rank(self, priority: int) -> bool:
        """Whether its questions may have a priority."""
        return Scope.ADMIN in self.scopes or priority <= self.max_priority

    def refusal(self, method: str, path: str, query: str) -> str | None:
        """Why a request is not allowed, in one line; None where it is."""
        scope = needed(method, path)
        if Scope.ADMIN not in self.scopes and scope not in self.scopes:
            return f"token {self.name!r} lacks the scope {scope.value!r}"
        if self.streams is None or path in _FILTERED:
            return None
        named = _stream_of(path, query)
        if named is None:
            told = ", add ?stream=NAME" if path in _BY_STREAM else ""
            return f"token {self.name!r} is limited to some streams{told}"
        if named not in self.streams:
            return f"token {self.name!r} is not for stream {named[:64]!r}"
        return None


def needed(method: str, path: str) -> Scope:
    """The scope that a request needs."""
    for route, scope in _NEEDED.items():
        if _fits(route, path):
            return scope
    return Scope.READ if method in ("GET", "HEAD", "OPTIONS") else Scope.ADMIN


def _fits(route: str, path: str) -> bool:
    """Whether a path is one of a route, part by part: a stream may be called as any of its parts."""
    wanted, given = route.split("/"), path.split("/")
    return len(wanted) == len(given) and all(
        part.startswith("{") or part == own for part, own in zip(wanted, given, strict=True)
    )


def _stream_of(path: str, query: str) -> str | None:
    """The one stream that a request is about, if its address says so."""
    parts = path.split("/")
    if len(parts) > _NAME_AT and _fits(_STREAM, "/".join(parts[: _NAME_AT + 1])):
        return parts[_NAME_AT]
    named = parse_qs(query).get("stream", [])
    return named[0] if path in _BY_STREAM and len(named) == 1 else None


class Tokens:
    """Every token there is."""

    def __init__(self, settings: HttpSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._known: list[tuple[str, Caller]] = []
        if settings.token is not None:
            secret = settings.token.get_secret_value().encode()
            everything = Caller(MAIN, frozenset([Scope.ADMIN]), None, settings.rate, clock=clock)
            self._known.append((_hash(secret), everything))
        for one in settings.tokens:
            streams = None if one.streams is None else frozenset(one.streams)
            rate = settings.rate if one.rate is None else one.rate
            scopes, most = frozenset(one.scopes), one.max_priority
            caller = Caller(one.name, scopes, streams, rate, most, clock)
            self._known.append((one.hash, caller))

    def __bool__(self) -> bool:
        return bool(self._known)

    def caller(self, authorization: bytes) -> Caller | None:
        """Who sends this header; None where nobody known does."""
        scheme, _, given = authorization.partition(b" ")
        told = _hash(given.strip())
        found = None
        for known, caller in self._known:  # all of them, so that time tells nothing
            if hmac.compare_digest(known, told):
                found = caller
        return found if scheme.lower() == b"bearer" else None
