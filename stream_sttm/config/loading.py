"""Load the configuration from a file: read, expand, check it whole, and report every fault at once.

Order: defaults < YAML < environment (`STREAM_STTM__MEMORY__WINDOW_TOKENS`) < overrides of the command line. Secrets
come in by `${NAME}` from the environment. A fault is one line: where it was set, its path, what is wrong. It never
holds the value, which may be a secret.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_settings import EnvSettingsSource, SettingsError

from stream_sttm import registry, urls
from stream_sttm.config import yaml_file
from stream_sttm.config.settings import Settings, at, contradictions
from stream_sttm.errors import ConfigError

_WORDS = {  # in place of messages of pydantic that name its classes
    "missing": "missing",
    "model_type": "must be a map of keys, not a value or a list",
    "dict_type": "must be a map of names, not a value or a list",
    "list_type": "must be a list, such as [a, b]",
}


def load(
    path: str | Path | None,
    *,
    overrides: Mapping[str, Any] | None = None,
    check: Callable[[Mapping[str, Any]], list[str]] | None = None,
) -> Settings:
    """Read, expand and check a configuration file. Raises ConfigError with a line for every fault.

    `overrides` are dotted keys (`"http.port": 0`) of the command line, which win over file and environment. `check`
    returns further faults of the merged tree that this layer can't know, such as unknown schemes and reducers.
    """
    tree, faults = yaml_file.expand(yaml_file.read(path)) if path is not None else ({}, [])
    environment, unknown = _environment()
    given = _nested(overrides or {})
    tree = _merged(_merged(_without_emptied(tree, Settings), environment), given)
    try:
        settings = Settings(**tree)
    except (
        ValidationError
    ) as error:  # without those that have no path, which `contradictions` repeats
        faults += [_fault(item) for item in error.errors() if item["loc"]]
    faults += contradictions(tree, at(tree, ["answering", "max_question_chars"]))
    faults += check(tree) if check is not None else []
    if faults or unknown:
        origins = {"command line": given, "environment": environment}
        raise ConfigError(
            "\n".join([*(_located(fault, origins, path) for fault in faults), *unknown])
        )
    return settings


def _without_emptied(tree: Mapping[str, Any], section: type[BaseModel]) -> dict[str, Any]:
    """Return the tree without sections that hold nothing, as where every line below a key is commented out."""
    kept = {}
    for key, value in tree.items():
        field = section.model_fields.get(key)
        kind = None if field is None else field.annotation
        is_section = isinstance(kind, type) and issubclass(kind, BaseModel)
        if value is None and (is_section or get_origin(kind) in (dict, list)):
            continue
        if isinstance(kind, type) and issubclass(kind, BaseModel) and isinstance(value, dict):
            value = _without_emptied(value, kind)
        kept[key] = value
    return kept


def _environment() -> tuple[dict[str, Any], list[str]]:
    """Return the settings given by the environment, and a fault for each of our variables that names none."""
    prefix = str(Settings.model_config.get("env_prefix"))
    known = list(Settings.model_fields)
    tree: dict[str, Any] = {}
    faults = []
    for name in sorted(name for name in os.environ if name.upper().startswith(prefix)):
        word = name[len(prefix) :].split("__")[0].lower()
        source = EnvSettingsSource(Settings)
        source.env_vars = {
            name.lower(): os.environ[name]
        }  # one by one, so that a fault names its variable
        try:
            part = source()
        except SettingsError:
            faults.append(f'environment: {name}: is not JSON, such as ["a", "b"] or {{"key": 1}}')
            continue
        if word not in known:
            faults.append(f"environment: {name} names no setting{registry.suggest(word, known)}")
        elif not part:
            faults.append(f"environment: {name} names no setting; {word} has no keys of its own")
        tree = _merged(tree, part)
    return tree, faults


def _nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in dotted.items():
        *parents, last = path.split(".")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Return `low` overridden by `high`. Maps are merged key by key, anything else is replaced."""
    tree = dict(low)
    for key, value in high.items():
        under = tree.get(key)
        tree[key] = (
            _merged(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
        )
    return tree


def _located(fault: str, origins: Mapping[str, Mapping[str, Any]], path: str | Path | None) -> str:
    """Return `fault`, which begins with its path in the tree, prefixed with where that was set."""
    location = fault.partition(":")[0].split(".")
    for origin, tree in origins.items():
        if at(tree, location) is not None:
            return f"{origin}: {fault}"
    return f"{path}: {fault}" if path is not None else fault


def _fault(error: Any) -> str:
    """Return one of pydantic's errors as a line: path, what is wrong, what to do."""
    path = ".".join(urls.shown(str(part)) for part in error["loc"])
    message = _WORDS.get(error["type"]) or str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "string_type":
        message = _no_text(error["input"])
    if error["type"] == "extra_forbidden":
        word = urls.shown(str(error["loc"][-1]))
        message = f"unknown key{registry.suggest(word, _keys_at(error['loc'][:-1]))}"
    return f"{path}: {message}"


def _no_text(value: object) -> str:
    """Return why a value is no text, and what to do; YAML gives bare words a meaning of its own."""
    if isinstance(value, bool):
        words = "yes, on and true" if value else "no, off and false"
        return f'must be text, but YAML reads {words} as a truth value: quote it, such as "yes"'
    if isinstance(value, int | float):
        return 'must be text, not a number: quote it, such as "7"'
    if isinstance(value, date):
        return "must be text, but YAML reads it as a date: quote it"
    return "must be text" if value is not None else "must be text; it is empty"


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the section at `location`."""
    node: Any = Settings
    for part in location:
        node = get_args(node)[1] if get_origin(node) is dict else node.model_fields[part].annotation
    return sorted(getattr(node, "model_fields", {}))
