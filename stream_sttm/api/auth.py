"""Authenticate a caller by a bearer token, and authorize its requests.

Tokens are compared by their SHA-256 in constant time. They are 256 random bits, so a slow hash would add nothing. Knows
paths and methods, no routes.
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
)  # their routes check the caller's streams themselves
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
    """Return a new token, and its hash for the configuration."""
    token = secrets.token_urlsafe(32)
    return token, _hash(token.encode())


def _hash(token: bytes) -> str:
    return f"sha256:{hashlib.sha256(token).hexdigest()}"


@dataclass(eq=False)
class Caller:
    """The holder of a token: its scopes, its streams (None: all), and its rate limit."""

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
        """Count a request. Returns 0 where it is allowed now, else the seconds to wait."""
        now = self.clock()
        self._left = min(self._most, self._left + (now - self._at) * self.rate)
        self._at = now
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return (1 - self._left) / self.rate

    def may_see(self, stream: str) -> bool:
        """Return whether the token is valid for a stream."""
        return self.streams is None or stream in self.streams

    def may_rank(self, priority: int) -> bool:
        """Whether its questions may have a priority."""
        return Scope.ADMIN in self.scopes or priority <= self.max_priority

    def refusal(self, method: str, path: str, query: str) -> str | None:
        """Return why a request is not allowed, in one line. None where it is."""
        scope = needed(method, path)
        if Scope.ADMIN not in self.scopes and scope not in self.scopes:
            return f"token {self.name!r} lacks the scope {scope.value!r}"
        if self.streams is None or path in _FILTERED:
            return None
        named = _stream_of(path, query)
        if named is None:
            hint = ", add ?stream=NAME" if path in _BY_STREAM else ""
            return f"token {self.name!r} is limited to some streams{hint}"
        if named not in self.streams:
            return f"token {self.name!r} is not for stream {named[:64]!r}"
        return None


def needed(method: str, path: str) -> Scope:
    """Return the scope that a request needs."""
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
    """Return the stream that a request's URL names, None where it names none or several."""
    parts = path.split("/")
    if len(parts) > _NAME_AT and _fits(_STREAM, "/".join(parts[: _NAME_AT + 1])):
        return parts[_NAME_AT]
    named = parse_qs(query).get("stream", [])
    return named[0] if path in _BY_STREAM and len(named) == 1 else None


class Tokens:
    """All configured tokens."""

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
        """Return the caller of an `Authorization` header, None where its token is unknown."""
        scheme, _, given = authorization.partition(b" ")
        hashed = _hash(given.strip())
        found = None
        for known, caller in self._known:  # all of them, so that timing leaks nothing
            if hmac.compare_digest(known, hashed):
                found = caller
        return found if scheme.lower() == b"bearer" else None
