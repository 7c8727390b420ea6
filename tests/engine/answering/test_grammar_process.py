"""No JSON schema holds up or ends the process that it is sent to: it is tried out in another, within limits."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from stream_sttm.engine.answering import grammar_child, grammars
from stream_sttm.engine.answering.formats import AnswerFormats
from stream_sttm.engine.answering.grammar_process import GrammarProcess
from stream_sttm.errors import ModelError, QuestionRejected
from stream_sttm.models import load_model
from stream_sttm.types import AnswerType, Form

# what the measures of size let through, as an attacker who knows of another pattern would send it
_COSTLY = """
import stream_sttm.config.schema_size as sizes, stream_sttm.engine.answering.grammars as grammars
sizes.MAX_PATTERNS = sizes.MAX_ALL_OF = 100
from stream_sttm.engine.answering.grammar_child import main
main()
"""


@pytest.fixture(scope="module")
def formats() -> AnswerFormats:
    return AnswerFormats(load_model("demo"))


@pytest.fixture(scope="module")
def process(formats: AnswerFormats) -> Iterator[GrammarProcess]:
    process = GrammarProcess(lambda: formats.vocabulary)
    yield process
    process.close()


def _patterns(count: int) -> str:
    members = [{"type": "string", "pattern": f".*{chr(97 + at)}.*"} for at in range(count)]
    return json.dumps({"allOf": members})


def _refusal(process: GrammarProcess, schema: str) -> str:
    with pytest.raises(QuestionRejected) as refused:
        process.check(schema)
    return str(refused.value)


@pytest.mark.parametrize(
    "schema",
    [
        "",
        "{}",
        '{"type": "object", "properties": {"people": {"type": "integer"}}, "required": ["people"]}',
        '{"type": "array", "items": {"type": "string", "pattern": "^[a-z]{1,20}$"}, "maxItems": 9}',
        '{"anyOf": [{"type": "null"}, {"type": "string", "format": "date-time"}]}',
        '{"$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"}',
        json.dumps(
            {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(200)}}
        ),
    ],
)
def test_a_schema_of_everyday_is_taken(process: GrammarProcess, schema: str) -> None:
    process.check(schema)


@pytest.mark.parametrize(
    ("schema", "line"),
    [
        ("{", "json_schema: Expecting property name"),
        ('{"type": "string", "pattern": "["}', "json_schema: no answer can follow it: "),
        ('{"type": "nothing"}', "json_schema: no answer can follow it: "),
        (_patterns(59), "json_schema: has more than 12 members of allOf"),
        ('{"minimum": 1e999}', "json_schema: has NaN or an infinite number"),
    ],
)
def test_a_schema_with_a_fault_is_refused_in_a_line(
    process: GrammarProcess, schema: str, line: str
) -> None:
    refusal = _refusal(process, schema)
    assert refusal.startswith(line)
    assert "\n" not in refusal


def test_a_schema_that_takes_too_much_is_refused_and_the_next_is_tried(
    formats: AnswerFormats,
) -> None:
    process = GrammarProcess(lambda: formats.vocabulary, command=(sys.executable, "-c", _COSTLY))
    try:
        for count in (16, 20, 24):  # about one second; thirty; more memory than there is
            assert _refusal(process, _patterns(count)) == grammar_child.TOO_COSTLY
        process.check("{}")
    finally:
        process.close()


def test_a_process_that_ends_is_started_anew(formats: AnswerFormats) -> None:
    ends = "import sys; sys.stdin.readline(); print('ready', flush=True); sys.stdin.readline()"
    process = GrammarProcess(lambda: formats.vocabulary, command=(sys.executable, "-c", ends))
    for _ in range(2):
        assert "could not be made a grammar in time" in _refusal(process, "{}")
    process.close()


def test_a_process_that_does_not_start_is_not_the_asker_s_fault(formats: AnswerFormats) -> None:
    process = GrammarProcess(lambda: formats.vocabulary, command=(sys.executable, "-c", ""))
    with pytest.raises(ModelError, match="does not start"):
        process.check("{}")
    process.close()
    with pytest.raises(ModelError, match="stopping"):
        process.check("{}")


def test_what_came_of_a_schema_is_remembered_a_refusal_too(
    formats: AnswerFormats, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = list[str]()

    def refuse(schema: str) -> None:
        tried.append(schema)
        raise QuestionRejected("json_schema: is refused here")

    form = Form(AnswerType.JSON, (), '{"title": "asked twice"}')
    assert not formats.is_prepared(form)
    for _ in range(2):
        formats.prepare(form, refuse)
    assert formats.is_prepared(form)
    assert tried == [form.json_schema]

    def compiled(*_: Any) -> None:
        raise AssertionError("compiled in spite of that")

    monkeypatch.setattr(grammars, "compiled", compiled)
    with pytest.raises(QuestionRejected, match="is refused here"):
        formats.check(form)
