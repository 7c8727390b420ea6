"""Find classes by name: in a table of "name: module:Class" strings, then among other packages' entry points.

Importing a table imports none of its members, so an optional library is needed only where it is named. Options are
checked against the class's dataclass fields before it is built.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import entry_points
from typing import Any

from stream_sttm.errors import ConfigError


def names(table: Mapping[str, str], group: str) -> list[str]:
    """List every name of a family, our own and other packages', sorted."""
    return sorted({*table, *(point.name for point in entry_points(group=group))})


def find(table: Mapping[str, str], group: str, name: str, *, kind: str) -> Any:
    """Return the class of `name`. Raises ConfigError for an unknown name or a missing optional library."""
    target = table.get(name) or next(
        (point.value for point in entry_points(group=group) if point.name == name), None
    )
    if target is None:
        raise ConfigError(f"there is no {kind} {name!r}{suggest(name, names(table, group))}")
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{kind} {name!r} needs the package {error.name!r}, which is not installed"
        ) from error


def build(cls: Any, options: Mapping[str, Any], *, kind: str) -> Any:
    """Return `cls(**options)`. Raises ConfigError for an unknown option, naming the nearest known one."""
    check_options(cls, options, kind=kind)
    try:
        return cls(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{kind}: {error}") from error


def check_options(cls: Any, options: Mapping[str, Any], *, kind: str) -> None:
    """Raise ConfigError for the first option that `cls`, a dataclass, does not have."""
    if not is_dataclass(cls):
        raise ConfigError(f"{kind} is no dataclass, so its options can't be checked")
    known = options_of(cls)
    for option in options:
        if option not in known:
            raise ConfigError(f"{kind} has no option {option!r}{suggest(option, known)}")


def options_of(cls: Any) -> list[str]:
    """Return the names of the options that `cls` has, none where it is no dataclass."""
    return [field.name for field in fields(cls) if field.init] if is_dataclass(cls) else []


def suggest(word: str, known: list[str]) -> str:
    """Return the end of a message about an unknown word: the nearest known one, or all of them."""
    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""
