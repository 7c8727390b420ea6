"""How large a JSON schema may be is measured before anything is compiled, wherever it comes from."""

from __future__ import annotations

from typing import Any

import pytest

from stream_sttm.config.schema_size import schema_fault


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


PATTERN = {"type": "string", "pattern": "a*"}


@pytest.mark.parametrize(
    ("schema", "fault"),
    [
        ({"allOf": [PATTERN] * 59}, "has more than 12 members of allOf"),
        ({"anyOf": [PATTERN] * 20}, "has more than 12 patterns"),
        (
            {"items": {"allOf": [{"allOf": [{}] * 7}, {"allOf": [{}] * 7}]}},
            "has more than 12 members of allOf",
        ),
        (
            {"properties": {f"p{at}": PATTERN for at in range(13)}},
            "has more than 12 patterns",
        ),
        (
            {"patternProperties": {f"p{at}": {} for at in range(13)}},
            "has more than 12 patterns",
        ),
        ({"pattern": "a" * 301}, "has a pattern of more than 300 characters"),
        (_nested(40), "is nested more than 32 levels deep"),
        (_nested(100_000), "is nested more than 32 levels deep"),
        ({"enum": [0] * 4001}, "has more than 4000 objects and values"),
        ({"title": "x" * 20_000}, "has more than 20000 characters"),
        ({"maximum": float("nan")}, "has NaN or an infinite number, which is not JSON"),
        ({"const": "\ud800"}, "is no valid Unicode; send UTF-8"),
    ],
)
def test_a_schema_that_is_too_much_is_refused(schema: Any, fault: str) -> None:
    assert schema_fault(schema) == fault


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"properties": {"pattern": {"type": "string"}, "allOf": {"type": "string"}}},
        {"allOf": [PATTERN] * 12},
        {"properties": {f"p{at}": {"type": "string", "maxLength": 50} for at in range(200)}},
        {"enum": [f"room {at}" for at in range(500)]},
    ],
)
def test_a_schema_of_everyday_is_small_enough(schema: Any) -> None:
    assert schema_fault(schema) is None
