"""URLs as people may see them: credentials taken out by parsing, never by pattern.

Knows nothing of what a URL is for. `mask` is the only way a source or sink URL reaches a log, topic or answer.
"""

from __future__ import annotations

from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from stream_sttm.errors import ConfigError

HIDDEN = "***"
_SECRET_KEYS = ("password", "passwd", "pass", "pwd", "token", "key", "secret", "auth", "user")


def split(url: str) -> SplitResult:
    """Parse `url`; raises ConfigError, without showing it, where it has no scheme or a bad port."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ConfigError("not a URL: its host or port can't be read") from error
    if not parts.scheme:
        raise ConfigError(f"not a URL: {_hint(url)!r} has no scheme such as rtsp:// or mqtt://")
    return parts


def mask(url: str) -> str:
    """The URL with user, password and secret-looking query values replaced by ***."""
    try:
        parts = split(url)
    except ConfigError:
        return HIDDEN
    host = parts.netloc.rpartition("@")[2]
    netloc = f"{HIDDEN}@{host}" if "@" in parts.netloc else host
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    if any(_is_secret(key) for key, _ in pairs):
        query = urlencode([(k, HIDDEN if _is_secret(k) else v) for k, v in pairs], safe="*")
    else:
        query = parts.query
    return urlunsplit((parts.scheme, netloc, parts.path, query, ""))


def scrub(text: str, url: str) -> str:
    """`text` (an error of some library, say) with every secret part of `url` taken out."""
    text = text.replace(url, mask(url))
    try:
        parts = split(url)
    except ConfigError:
        return text
    secrets = [parts.password, parts.netloc.rpartition("@")[0]]
    secrets += [value for key, value in parse_qsl(parts.query) if _is_secret(key)]
    for secret in secrets:
        for form in (secret, unquote(secret or "")):
            if form:
                text = text.replace(form, HIDDEN)
    return text


def _is_secret(key: str) -> bool:
    return any(word in key.lower() for word in _SECRET_KEYS)


def _hint(url: str) -> str:
    """A part of something that is no URL, short enough and free of anything before an @."""
    return url.rpartition("@")[2][:40]
