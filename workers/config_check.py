"""Checks of a configuration that need the registries: URL schemes, access rules, reducers, retention policies.

Nothing is connected to and no model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from stream_sttm import registry, urls
from stream_sttm.config.streams import SourceRules
from stream_sttm.errors import ConfigError, SourceDenied
from stream_sttm.models import folder_fault
from stream_sttm.reducers import GROUP as REDUCER_GROUP
from stream_sttm.reducers import REDUCERS
from stream_sttm.retention import build_policy
from stream_sttm.sinks import open_sink
from stream_sttm.sources import open_source
from stream_sttm.sources.network.access import EVERYTHING, Access


def faults_of(tree: Mapping[str, Any]) -> list[str]:
    """Return the faults of a configuration tree, one line each, that need the registries to be found."""
    faults = []
    access = _access(tree.get("sources"))
    streams = tree.get("streams")
    for name, stream in streams.items() if isinstance(streams, dict) else ():
        given = stream.get("source") if isinstance(stream, dict) else None
        for url in given if isinstance(given, list) else [given]:
            if isinstance(url, str):
                faults += _fault(
                    f"streams.{urls.shown(name)}.source",
                    open_source,
                    url,
                    stream=name,
                    fps=1.0,
                    max_side=640,
                    access=access,
                )
    faults += _faults_of_sinks(tree.get("sinks"))
    model = tree.get("model")
    if isinstance(model, str) and model != "demo" and (fault := folder_fault(model)):
        faults.append(f"model: {fault.removeprefix('model ')}")
    reducer = tree.get("reducer")
    if isinstance(reducer, dict):
        faults += _fault("reducer", _check_reducer, reducer)
    memory = tree.get("memory")
    retention = memory.get("retention") if isinstance(memory, dict) else None
    if isinstance(retention, dict):
        options = {key: value for key, value in retention.items() if key != "name"}
        name = str(retention.get("name", "fifo"))
        faults += _fault("memory.retention", build_policy, name, options)
    elif isinstance(retention, str):
        faults += _fault("memory.retention", build_policy, retention)
    return faults


def _faults_of_sinks(sinks: Any) -> list[str]:
    faults: list[str] = []
    names: dict[str, int] = {}

    def check(index: int, url: str) -> None:
        first = names.setdefault(open_sink(url).name, index)
        if first != index:
            raise ConfigError(f"is the same broker and prefix as sinks.{first}")

    for index, url in enumerate(sinks if isinstance(sinks, list) else ()):
        if isinstance(url, str):
            faults += _fault(f"sinks.{index}", check, index, url)
    return faults


def _access(rules: Any) -> Access:
    """Return the access rules for sources, or no rules where they have faults of their own."""
    try:
        return Access.of(SourceRules.model_validate(rules or {}))
    except ValidationError:
        return EVERYTHING


def _check_reducer(reducer: Mapping[str, Any]) -> None:
    name = str(reducer.get("name", "sttm_streaming"))
    cls = registry.find(REDUCERS, REDUCER_GROUP, name, kind="reducer")
    own = {"name", "at_layer", "size_bias"}
    options = {key: value for key, value in reducer.items() if key not in own}
    registry.build(cls, options, kind=f"reducer {name!r}")


def _fault(path: str, check: Callable[..., object], *args: Any, **kwargs: Any) -> list[str]:
    try:
        check(*args, **kwargs)
    except (ConfigError, SourceDenied) as error:
        return [] if "not a URL" in str(error) else [f"{path}: {error}"]
    return []
