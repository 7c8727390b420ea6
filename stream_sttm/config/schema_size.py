"""Whether a JSON schema is small enough to be made a grammar: measured without a model, before anything is compiled.

Several patterns on one text are intersected, and the states of that double with each pattern. Whatever else is slow is
found where the grammar is compiled.
"""

from __future__ import annotations

import json
import math
from typing import Any

from stream_sttm.config.text_check import text_fault

MAX_CHARS = 20_000
MAX_DEPTH = 32
MAX_NODES = 4000  # objects, arrays and values
MAX_PATTERNS = 12
MAX_PATTERN_CHARS = 300
MAX_ALL_OF = 12  # members of all allOf together


class _Measure:
    """Counts what a schema holds."""

    def __init__(self) -> None:
        self.nodes = self.patterns = self.all_of = 0

    def fault_of(self, node: Any) -> str | None:
        """Count one node. Returns why the schema can't be taken, None where it still can."""
        self.nodes += 1
        if isinstance(node, str):
            return text_fault([node])
        if isinstance(node, float) and not math.isfinite(node):
            return "has NaN or an infinite number, which is not JSON"
        if isinstance(node, dict):
            return self._fault_of_keywords(node)
        return None

    def too_much(self) -> str | None:
        """Return which count is above its limit, None where none is."""
        counts = {
            "objects and values": (self.nodes, MAX_NODES),
            "patterns": (self.patterns, MAX_PATTERNS),
            "members of allOf": (self.all_of, MAX_ALL_OF),
        }
        for name, (count, most) in counts.items():
            if count > most:
                return f"has more than {most} {name}"
        return None

    def _fault_of_keywords(self, node: dict[Any, Any]) -> str | None:
        patterns = [*_keys_of(node.get("patternProperties")), node.get("pattern")]
        patterns = [pattern for pattern in patterns if isinstance(pattern, str)]
        self.patterns += len(patterns)
        all_of = node.get("allOf")
        self.all_of += len(all_of) if isinstance(all_of, list) else 0
        if any(len(pattern) > MAX_PATTERN_CHARS for pattern in patterns):
            return f"has a pattern of more than {MAX_PATTERN_CHARS} characters"
        return text_fault(map(str, node))


def schema_fault(schema: Any) -> str | None:
    """Return why a JSON schema can't be taken, None where it can."""
    measure = _Measure()
    level, depth = [schema], 0
    while level:
        if depth >= MAX_DEPTH:
            return f"is nested more than {MAX_DEPTH} levels deep"
        for node in level:
            if fault := measure.fault_of(node) or measure.too_much():
                return fault
        level = [child for node in level for child in _children(node)]
        depth += 1
    if len(json.dumps(schema, allow_nan=False)) > MAX_CHARS:
        return f"has more than {MAX_CHARS} characters"
    return None


def _keys_of(node: Any) -> list[Any]:
    return list(node) if isinstance(node, dict) else []


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return list(node) if isinstance(node, list | tuple) else []
