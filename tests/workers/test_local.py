"""What the parts of one process share: nothing that passes between them is lost without a word."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_sttm.config.settings import Settings
from stream_sttm.errors import NotReady
from stream_sttm.metrics import STORE_ERRORS
from stream_sttm.sinks.commands import Commands
from stream_sttm.storage.backends import open_outbox
from tests.support.answers import make_answer, make_status
from workers import delivery
from workers.config_check import faults_of
from workers.service import LocalService


async def test_an_answer_that_delivery_has_no_room_for_is_counted_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(delivery, "ANSWERS_AHEAD", 2)
    outbox = LocalService(Settings()).outbox
    before = STORE_ERRORS._value.get()
    outbox.offer(make_status())
    for _ in range(3):
        outbox.offer(make_answer())
    assert len(outbox) == 2
    assert (
        STORE_ERRORS._value.get() == before + 1
    )  # the status made room first, and a newer one follows
    assert "an answer was lost, delivery is 2 behind" in caplog.text


SETTINGS = {
    "streams": {"cam": {"source": "scene://hall"}},
    "queries": {"look": {"streams": ["cam"], "ask": "What is there?"}},
}


async def test_sinks_see_what_is_configured_and_change_nothing_before_the_start() -> None:
    service = LocalService(Settings.model_validate(SETTINGS))
    commands: Commands = service
    assert list(commands.standing()) == ["look"]
    assert commands.is_query_enabled("look", "cam")
    assert commands.stats()["streams"]["cam"]["state"] == "connecting"
    assert not commands.is_switchable  # before it has started
    for command in (
        commands.set_stream_enabled("cam", False),
        commands.set_query_enabled("look", "cam", False),
        commands.trigger("look", "cam"),
    ):
        with pytest.raises(NotReady, match="has not started yet"):
            await command
    commands.resend()
    assert len(service.outbox) == 1


@pytest.mark.parametrize(
    ("store", "outbox", "expected"),
    [
        ("answers.db", None, "answers-outbox.db"),
        ("answers.db", "elsewhere.db", "elsewhere.db"),
        (":memory:", None, None),
        (":memory:", "waiting.db", "waiting.db"),
        ("postgresql://u:p@h/db", None, None),
        ("answers.db", "no/such/folder/x.db", None),
    ],
)
def test_the_outbox_lies_beside_the_store_unless_told_otherwise(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    store: str,
    outbox: str | None,
    expected: str | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    told = {"store": {"path": store}, "outbox": {"path": outbox}, "sinks": ["mqtt://h"]}
    backlog = open_outbox(Settings.model_validate(told))
    if backlog is not None:
        backlog.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ([expected] if expected else [])


def test_two_sinks_of_one_name_are_a_fault() -> None:
    told = ["mqtt://h/a", "mqtt://h/b", "mqtt://u:p@h:1883/a?protocol=5"]
    assert faults_of({"sinks": told}) == ["sinks.2: is the same broker and prefix as sinks.0"]
