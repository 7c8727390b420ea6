"""What a changed configuration changes: names of what is live, paths of what waits for a restart, never a value."""

from __future__ import annotations

from typing import Any

import pytest

from stream_sttm.config.settings import Settings
from stream_sttm.config.streams import StreamSettings
from stream_sttm.control.diff import between, keeps_memory, reads_alike, taken_over

DOOR = {"source": "rtsp://u:hunter2@host/door", "fps": 2}
LOOK = {"streams": ["door"], "ask": "Who?"}


def settings(**more: Any) -> Settings:
    told = {"streams": {"door": DOOR}, "queries": {"look": LOOK}, "sinks": ["mqtt://u:hunter2@a/x"]}
    return Settings(**{**told, **more})


def test_nothing_differs() -> None:
    changes = between(settings(), settings())
    assert not changes
    assert changes.summary() == "nothing differs"


def test_live_keys_are_named_by_what_came_went_and_became_different() -> None:
    new = settings(
        streams={"door": {**DOOR, "fps": 4}, "yard": DOOR},
        queries={"other": LOOK},
        sinks=["mqtt://u:hunter2@b/x"],
        answering={"timeout": 3},
        sources={"private": False},
        log_level="debug",
    )
    changes = between(settings(), new)
    assert changes.as_dict() == {
        "streams": {"added": ["yard"], "removed": [], "changed": ["door"]},
        "queries": {"added": ["other"], "removed": ["look"], "changed": []},
        "sinks": {"added": ["mqtt://***@b/x"], "removed": ["mqtt://***@a/x"], "changed": []},
        "answering": True,
        "sources": True,
        "log_level": True,
        "needs_restart": [],
    }
    assert "hunter2" not in changes.summary()
    assert taken_over(settings(), new) == new


def test_what_waits_for_a_restart_is_named_by_its_path_and_stays_as_it_was() -> None:
    new = settings(
        model="/elsewhere",
        http={"port": 1, "token": "hunter2"},
        reducer={"name": "sttm_streaming", "refresh_every": 3},
        log_level="error",
    )
    changes = between(settings(), new)
    assert set(changes.waiting) == {"model", "http.port", "http.token", "reducer.refresh_every"}
    assert "hunter2" not in changes.summary()
    held = taken_over(settings(), new)
    assert (held.model, held.http.port, held.log_level) == ("demo", 8080, "error")
    assert between(held, new).waiting == changes.waiting  # until the restart


@pytest.mark.parametrize(
    ("change", "memory", "reading"),
    [
        ({}, True, True),
        ({"enabled": False}, True, True),
        ({"frigate": "front"}, True, True),
        ({"source": "scene://x"}, True, False),
        ({"max_side": 320}, True, False),
        ({"stall_after": 9}, True, False),
        ({"fps": 3}, False, False),
        ({"clip_frames": 3}, False, False),
    ],
)
def test_a_stream_keeps_its_memory_and_its_reader_where_nothing_speaks_against_it(
    change: dict[str, Any], memory: bool, reading: bool
) -> None:
    old, new = StreamSettings(**DOOR), StreamSettings(**{**DOOR, **change})
    assert (keeps_memory(old, new), reads_alike(old, new)) == (memory, reading)
