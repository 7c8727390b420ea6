"""Read a YAML file as a tree of plain values, without duplicate keys, and expand ${NAME} and ${file:/path}.

Knows nothing of what the keys mean. A fault is one line and never repeats a value, which may be a secret.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from stream_sttm import urls
from stream_sttm.errors import ConfigError

_VARIABLE = re.compile(r"\$\{(?:([A-Za-z_][A-Za-z0-9_]*)|file:(/[^}]+))\}")
MAX_SECRET = 64 * 1024  # bytes of a file that is named for its content


def read(path: str | Path) -> dict[str, Any]:
    """Return the file's tree, {} for an empty file. Raises ConfigError where it can't be read as a map."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"{path}: can't read the configuration: {reason}") from error
    try:
        tree = yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML{_place(error)}: {_reason(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: not valid YAML: nested too deeply") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: the configuration must be a map of keys such as 'streams:'")
    return tree


def expand(node: Any, path: str = "") -> tuple[Any, list[str]]:
    """Return `node` with every ${NAME} and ${file:/path} replaced, and a fault for each that can't be."""
    if isinstance(node, str):
        faults = [
            f"{path}: {fault}" for match in _VARIABLE.finditer(node) for fault in _faults(match)
        ]
        return _VARIABLE.sub(_value, node), faults
    if isinstance(node, dict):
        pairs = {
            key: expand(value, f"{path}.{urls.shown(key)}".lstrip("."))
            for key, value in node.items()
        }
        return {k: v[0] for k, v in pairs.items()}, [f for v in pairs.values() for f in v[1]]
    if isinstance(node, list):
        items = [expand(value, f"{path}.{index}") for index, value in enumerate(node)]
        return [item[0] for item in items], [f for item in items for f in item[1]]
    return node, []


def named(text: str) -> list[str]:
    """Return what `text` refers to: NAME of a variable, file:/path of a file."""
    return [match[0][2:-1] for match in _VARIABLE.finditer(text)]


def _faults(match: re.Match[str]) -> list[str]:
    """Return why a variable or file has no value. Empty where it has one."""
    name, path = match.groups()
    if name is not None:
        if name in os.environ:
            return []
        return [f"the environment has no variable {name!r}; set it, or take ${{{name}}} out"]
    try:
        _content(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not a short UTF-8 text"
        return [f"can't read the file {path!r}: {reason}"]
    return []


def _content(path: str) -> str:
    """Return a file's text without the newline at its end."""
    with Path(path).open("rb") as file:
        content = file.read(MAX_SECRET + 1)
    if len(content) > MAX_SECRET:
        raise ValueError(path)
    return content.decode().removesuffix("\n").removesuffix("\r")


def _value(match: re.Match[str]) -> str:
    """Return the value of a variable or file. Inside a URL it is percent-encoded, so that any password fits."""
    name, path = match.groups()
    value = os.environ.get(name, "") if name is not None else ""
    if path is not None:
        with contextlib.suppress(OSError, ValueError):  # reported by _faults
            value = _content(path)
    return quote(value, safe="") if "://" in match.string[: match.start()] else value


class _Fault(yaml.constructor.ConstructorError):
    """An error of our own, whose text may be shown."""


class _Loader(yaml.SafeLoader):
    """YAML's safe subset. Refuses duplicate keys and values that contain themselves."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # the map itself may override what << merges in
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                reason = "a key that is no text; quote it where it is meant as a name"
                raise _Fault(None, None, reason, key_node.start_mark)
            if key in seen:
                raise _Fault(None, None, "a key stands twice in one map", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        # deep from the root on, so that a value that contains itself is an error and no endless tree
        try:
            return super().construct_object(node, deep=True)
        except (ValueError, OverflowError) as error:
            reason = "a number or date that can't be; quote it where it is meant as text"
            raise _Fault(None, None, reason, node.start_mark) from error


def _place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _reason(error: yaml.YAMLError) -> str:
    """Return what is wrong, without any of the file's own text."""
    if isinstance(error, yaml.composer.ComposerError) or (
        isinstance(error, yaml.constructor.ConstructorError) and not isinstance(error, _Fault)
    ):
        return (
            "a tag or alias that has no meaning here; quote values that begin with '*', '&' or '!'"
        )
    return getattr(error, "problem", None) or "it holds characters that no text file has"
