"""A fault that pydantic finds, as one line without the input, which may be a secret."""

from __future__ import annotations

from typing import Any


def fault_line(error: Any, path: str = "") -> str:
    """Return one of `ValidationError.errors()` as `path.of.the.field: what is wrong`, below `path` where it is given."""
    location = ".".join(filter(None, [path, *map(str, error["loc"])]))
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{location}: {message}" if location else message
