"""Which pages may call: what a browser tells by `Host` and `Origin`, which no page can choose.

Without tokens whoever reaches the service may use it, and a page in a browser on this machine reaches it. So then only
names of the loopback address are answered: a page whose own name was pointed at it (DNS rebinding) still sends that
name. And a page of another origin changes nothing (CSRF), unless it is named in http.cors.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence

Headers = Iterable[tuple[bytes, bytes]]
_SAFE = ("GET", "HEAD", "OPTIONS")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@/\s]+)(?::(\d{0,5}))?")
_USUAL = {"http": "80", "https": "443"}
_SHOWN = 200  # characters of a header


def refusal(headers: Headers, method: str, allowed: Sequence[str], *, is_open: bool) -> str | None:
    """Why a page may not call, in one line, None where it may. `is_open`: no token is needed."""
    hosts, origins = _values(headers, b"host"), _values(headers, b"origin")
    if is_open and not all(is_loopback(host) for host in hosts):
        return (
            f"host {hosts[0][:_SHOWN]!r} is not answered without a token: call 127.0.0.1 or localhost,"
            " or set http.token"
        )
    if method in _SAFE:
        return None
    for origin in origins:
        if origin not in allowed and not any(_is_same(origin, host) for host in hosts):
            return f"origin {origin[:_SHOWN]!r} may not call; name it in http.cors"
    return None


def is_loopback(host: str) -> bool:
    """Return whether a `Host` names this machine alone, with any port."""
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    name = found[1].strip("[]").lower()
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _is_same(origin: str, host: str) -> bool:
    """Return whether a page comes from us. A proxy in front may speak TLS, so the scheme only tells the usual port."""
    scheme, _, place = origin.lower().partition("://")
    of_page, of_us = _HOST.fullmatch(place), _HOST.fullmatch(host.lower())
    if of_page is None or of_us is None or scheme not in _USUAL:
        return False
    usual = _USUAL[scheme]
    return (of_page[1], of_page[2] or usual) == (of_us[1], of_us[2] or usual)


def _values(headers: Headers, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in headers if key == name]
