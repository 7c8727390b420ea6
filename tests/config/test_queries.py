"""Which forms of an answer a configuration may ask for, and the one line for each that can't be."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from stream_sttm.config.queries import FormSettings
from stream_sttm.types import FREE_TEXT, AnswerType, Form


def test_text_is_the_default() -> None:
    assert FormSettings().form == FREE_TEXT


def test_form_holds_plain_data() -> None:
    told = {"type": "choice", "choices": ["open ", "half  open"]}
    assert FormSettings.model_validate(told).form == Form(
        AnswerType.CHOICE, ("open", "half open"), ""
    )
    told = {"type": "json", "json_schema": {"type": "object"}}
    assert FormSettings.model_validate(told).form.json_schema == '{"type": "object"}'


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({"type": "choice"}, "choices belong to type choice"),
        ({"type": "choice", "choices": ["open"]}, "one is no choice"),
        ({"type": "choice", "choices": ["open", "Open"]}, "two are the same"),
        ({"type": "choice", "choices": ["open", " "]}, "1 to 200 characters"),
        ({"type": "choice", "choices": [str(n) for n in range(65)]}, "at most 64"),
        ({"choices": ["open", "shut"]}, "choices belong to type choice"),
        ({"json_schema": {}}, "json_schema belongs to type json"),
        ({"type": "json", "json_schema": {"title": "x" * 20_001}}, "more than 20000"),
        ({"type": "maybe"}, "'text', 'yes_no', 'choice', 'number' or 'json'"),
    ],
)
def test_what_can_not_be_is_told_in_a_line(told: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError, match=line):
        FormSettings.model_validate(told)
