"""Mask credentials in URLs, by parsing and never by pattern.

`mask` is the only way in which the URL of a source or sink reaches a log, topic or answer. Where it can't tell a
credential from the rest, it hides the rest too. Knows nothing of what a URL is for.
"""

from __future__ import annotations

import re
from urllib.parse import (
    SplitResult,
    parse_qsl,
    quote,
    quote_plus,
    unquote,
    urlencode,
    urlsplit,
    urlunsplit,
)

from stream_sttm.errors import ConfigError

HIDDEN = "***"
_HOST = re.compile(
    r"[\w.~-]*|[0-9a-f]*:[0-9a-f:.]*(%[\w.~-]+)?"
)  # a name, an IPv4 or an IPv6 address
_SECRET_KEYS = ("password", "passwd", "pass", "pwd", "token", "key", "secret", "auth", "user")


def split(url: str) -> SplitResult:
    """Parse `url`. Raises ConfigError, which does not repeat it, where it has no scheme or a bad port."""
    try:
        parts = urlsplit(url)
        _ = parts.port
        if not _HOST.fullmatch(parts.hostname or ""):
            raise ValueError("characters that no host has")
    except ValueError as error:
        raise ConfigError(
            "not a URL: its host or port can't be read; in a password write @ : / ? # as %40 %3A %2F %3F %23,"
            " or take it from the environment with ${NAME}"
        ) from error
    if not (parts.scheme and url.partition(":")[2].startswith("//")):
        raise ConfigError("not a URL: it has no scheme such as rtsp:// or mqtt://")
    return parts


def mask(url: str) -> str:
    """Return the URL with user, password and anything else that looks secret replaced by ***."""
    try:
        parts = split(url)
    except ConfigError:
        return HIDDEN
    netloc, path, query = parts.netloc, parts.path, parts.query
    rest = url.partition("//")[2]
    if "@" in rest[len(netloc) :] and ":" in netloc:
        # a password with a bare / ? or # in it ends the host too early, so all before the last @ may be secret
        netloc, _, path = rest.rpartition("@")[2].partition("/")
        netloc, query = f"{HIDDEN}@{netloc.partition('?')[0].partition('#')[0]}", ""
        path = f"/{path}".partition("?")[0].partition("#")[0] if path else ""
    elif "@" in netloc:
        netloc = f"{HIDDEN}@{netloc.rpartition('@')[2]}"
    path = "/".join(HIDDEN if _names_secret(part) else part for part in path.split("/"))
    pairs = parse_qsl(query, keep_blank_values=True)
    if any(_is_secret(key) for key, _ in pairs):
        query = urlencode([(k, HIDDEN if _is_secret(k) else v) for k, v in pairs], safe="*")
    return urlunsplit((parts.scheme, netloc, path, query, ""))


def scrub(text: str, url: str) -> str:
    """Return `text`, such as a library's error, without the secret parts of `url`, however they are encoded."""
    text = text.replace(url, mask(url))
    try:
        parts = split(url)
    except ConfigError:
        return text
    login = parts.netloc.rpartition("@")[0]
    secrets = {login, parts.password or "", parts.fragment}
    secrets |= {part for part in parts.path.split("/") if _names_secret(part)}
    for pair in parts.query.split("&"):
        key, _, value = pair.partition("=")
        if _is_secret(unquote(key)):
            secrets.add(value)
    for secret in sorted(_spellings(secrets), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def shown(word: str) -> str:
    """Return a key or name as a message may repeat it, because it may be a URL put in the wrong place."""
    return mask(word) if "://" in word or "@" in word else word


def _spellings(secrets: set[str]) -> set[str]:
    """Return each secret as it stands in the URL, decoded, and as another program may encode it."""
    forms = set()
    for secret in secrets:
        meant = {unquote(secret), unquote(secret.replace("+", " "))}
        forms |= {secret, *meant}
        for plain in meant:
            forms |= {quote(plain, safe=""), quote(plain), quote_plus(plain), repr(plain)[1:-1]}
            forms |= {form.lower() for form in (quote(plain, safe=""), quote(plain)) if "%" in form}
    return forms - {""}


def _names_secret(part: str) -> bool:
    """Return whether a part of a path holds a credential, as for some cameras: /user=admin_password=x_channel=1."""
    return "=" in part and _is_secret(unquote(part))


def _is_secret(key: str) -> bool:
    return any(word in key.lower() for word in _SECRET_KEYS)
