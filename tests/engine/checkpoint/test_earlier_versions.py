"""Memories saved by earlier versions: the same answers, token for token, as the version that wrote them gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream_sttm.config.settings import AnsweringSettings, MemorySettings, ReducerSettings
from stream_sttm.engine.checkpoint import archive_file, session_file
from stream_sttm.engine.engine import Engine
from stream_sttm.models import load_model
from stream_sttm.types import Answer, Question

VERSIONS = sorted(
    path for path in (Path(__file__).parents[2] / "data" / "versions").iterdir() if path.is_dir()
)


def _engine(folder: Path) -> Engine:
    config: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text())
    engine = Engine(
        load_model(str(folder / "model")),
        reducer=ReducerSettings.model_validate(config["reducer"]),
        memory=MemorySettings.model_validate(config["memory"]),
        answering=AnsweringSettings.model_validate(config["answering"]),
        clock=lambda: 0.0,
    )
    engine.open("cam", fps=config["streams"]["cam"]["fps"])
    return engine


def _answer(engine: Engine, text: str, recall: Any) -> Answer:
    engine.ask(Question("q", "cam", text, 0.0, 8, recall=recall))
    outcomes = []
    while not engine.is_idle:
        outcomes += engine.step()
    return next(outcome for outcome in outcomes if isinstance(outcome, Answer))


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_a_memory_and_its_past_answer_as_the_version_that_saved_them(folder: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text())
    engine = _engine(folder)
    memory = session_file.read(folder / "state", "cam")
    past = archive_file.read(folder / "state", "cam")
    assert memory is not None
    assert past is not None
    engine.sessions.restore(memory)
    assert engine.sessions.restore_past(past) == expected["past_windows"] > 0
    assert any(answer["recalled"] for answer in expected["answers"])
    for wanted in expected["answers"]:
        answer = _answer(engine, wanted["question"], wanted["recall"])
        assert answer.text == wanted["text"]
        assert (answer.tokens.visual, answer.tokens.recalled) == (
            wanted["visual"],
            wanted["recalled"],
        )
        assert list(answer.span) == wanted["span"]


def test_there_are_versions_to_check() -> None:
    assert VERSIONS
