"""Read a YAML file as a tree of plain values, without duplicate keys, and fill in its variables.

Knows nothing of what the keys mean. A fault is one line and never repeats a value, which may be a secret.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from stream_sttm import urls
from stream_sttm.config import variables
from stream_sttm.errors import ConfigError

MAX_VALUES = 100_000  # of a file, with every alias unfolded


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
        text, faults = variables.expand(node)
        return text, [f"{path}: {fault}" for fault in faults]
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


class _Fault(yaml.constructor.ConstructorError):
    """An error of our own, whose text may be shown."""


class _Loader(yaml.SafeLoader):
    """YAML's safe subset. Refuses duplicate keys, values that contain themselves, and aliases that unfold for ever."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _unfolded(node, {}) > MAX_VALUES:
            reason = f"its aliases (*name) unfold to more than {MAX_VALUES} values; write them out"
            raise _Fault(None, None, reason, node.start_mark)
        return node

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


def _unfolded(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node is once every alias in it is unfolded; each node is looked at once."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = 0  # of a value that contains itself, which is refused later
    if isinstance(node, yaml.MappingNode):
        inner = [part for pair in node.value for part in pair]
    else:
        inner = node.value if isinstance(node, yaml.SequenceNode) else []
    known[id(node)] = 1 + sum(_unfolded(part, known) for part in inner)
    return known[id(node)]


def _place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _reason(error: yaml.YAMLError) -> str:
    """Return what is wrong, without any of the file's own text."""
    problem = getattr(error, "problem", None) or ""
    if problem == "but found another document":
        return "a second document begins here (---); keep one in the file"
    if isinstance(error, yaml.parser.ParserError) and problem.startswith("expected ','"):
        return 'inside {} and [], quote a text that holds ? : , { } [ or ], such as ask: "Is someone there?"'
    if isinstance(error, yaml.composer.ComposerError) or (
        isinstance(error, yaml.constructor.ConstructorError) and not isinstance(error, _Fault)
    ):
        return (
            "a tag or alias that has no meaning here; quote values that begin with '*', '&' or '!'"
        )
    return problem or "it holds characters that no text file has"
