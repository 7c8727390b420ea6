"""What the parts of one process share: nothing that passes between them is lost without a word."""

from __future__ import annotations

import pytest

from stream_sttm.config import Settings
from stream_sttm.metrics import STORE_ERRORS
from tests.answers import make_answer, make_status
from workers import local


async def test_an_answer_that_delivery_has_no_room_for_is_counted_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(local, "_ANSWERS_AHEAD", 2)
    outbox = local.LocalService(Settings()).outbox
    before = STORE_ERRORS._value.get()
    outbox.offer(make_status())
    for _ in range(3):
        outbox.offer(make_answer())
    assert len(outbox) == 2
    assert (
        STORE_ERRORS._value.get() == before + 1
    )  # the status made room first, and a newer one follows
    assert "an answer was lost, delivery is 2 behind" in caplog.text
