"""Values of ${NAME} and ${file:/path} in the texts of a configuration, encoded as their place in a URL asks.

A password may hold any character, so it is percent-encoded. A host, port, path or query may come from a variable as
it is written. A fault is one line and never repeats a value, which may be a secret.
"""

from __future__ import annotations

import contextlib
import os
import re
from enum import Enum, auto
from pathlib import Path
from urllib.parse import quote

_VARIABLE = re.compile(r"\$\{(?:([A-Za-z_][A-Za-z0-9_]*)|file:(/[^}]+))\}")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+(%25[\w.~-]+)?\]|[\w.~-]*)(:\d{1,5})?")
_RESERVED = ":/?#[]@!$&'()*+,;=%"  # what has a meaning in a URL is taken as it stands
MAX_SECRET = 64 * 1024  # bytes of a file that is named for its content


class _Place(Enum):
    """Where in a URL a variable stands."""

    TEXT = auto()  # in no URL
    LOGIN = auto()  # alone before the @: a user, or user and password
    SECRET = auto()  # a user or a password
    HOST = auto()  # host, port, or both
    VALUE = auto()  # behind a =, in a query, a fragment or a path
    OPEN = auto()  # elsewhere in a path, query or fragment


def expand(text: str) -> tuple[str, list[str]]:
    """Return `text` with every variable replaced, and a fault for each that has no value or fits its place not."""
    masked = _VARIABLE.sub(lambda match: "x" * len(match[0]), text)
    faults: list[str] = []

    def value(match: re.Match[str]) -> str:
        if fault := _missing(match):
            faults.append(fault)
            return ""
        given, place = _given(match), _place(masked, match.start())
        if place is _Place.HOST and not _HOST.fullmatch(given):
            faults.append(
                f"the value of {match[0]} can't be a host or port of a URL; it looks like 10.0.0.5, cam.local:8554 or"
                " [fe80::1]:554. For a whole URL, write the variable alone"
            )
        return _encoded(given, place)

    return _VARIABLE.sub(value, text), faults


def named(text: str) -> list[str]:
    """Return what `text` refers to: NAME of a variable, file:/path of a file."""
    return [match[0][2:-1] for match in _VARIABLE.finditer(text)]


def _place(masked: str, start: int) -> _Place:
    """Return where a variable at `start` stands in `masked`, which is the text with every variable blotted out."""
    begin = masked.find("://") + 3
    if begin < 3 or start < begin:
        return _Place.TEXT
    end = next((at for at in range(begin, len(masked)) if masked[at] in "/?#"), len(masked))
    if start < end:
        at = masked.rfind("@", begin, end)
        if at < start:
            return _Place.HOST
        return _Place.SECRET if ":" in masked[begin:at] else _Place.LOGIN
    part = re.split(r"[/?#&]", masked[begin:start])[-1]
    return _Place.VALUE if "=" in part else _Place.OPEN


def _encoded(value: str, place: _Place) -> str:
    match place:
        case _Place.TEXT | _Place.HOST:
            return value
        case _Place.LOGIN:
            return quote(value, safe=":")
        case _Place.SECRET | _Place.VALUE:
            return quote(value, safe="")
        case _Place.OPEN:
            return quote(value, safe=_RESERVED)


def _missing(match: re.Match[str]) -> str | None:
    """Return why a variable or file has no value, None where it has one."""
    name, path = match.groups()
    if name is not None:
        if name in os.environ:
            return None
        return f"the environment has no variable {name!r}; set it, or take ${{{name}}} out"
    try:
        _content(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not a short UTF-8 text"
        return f"can't read the file {path!r}: {reason}"
    return None


def _given(match: re.Match[str]) -> str:
    """Return the value of a variable or file, "" where there is none."""
    name, path = match.groups()
    if name is not None:
        return os.environ.get(name, "")
    with contextlib.suppress(OSError, ValueError):
        return _content(path)
    return ""


def _content(path: str) -> str:
    """Return a file's text without the newline at its end."""
    with Path(path).open("rb") as file:
        content = file.read(MAX_SECRET + 1)
    if len(content) > MAX_SECRET:
        raise ValueError(path)
    return content.decode().removesuffix("\n").removesuffix("\r")
