"""What comes over HTTP beside the configuration file: what fits, what it may reach, what people see of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stream_sttm.config.settings import Settings
from stream_sttm.config.streams import SourceRules, StreamSettings
from stream_sttm.control import masked
from stream_sttm.control.additions import AddedStream, Additions, access_of, stream_of
from stream_sttm.control.diff import reads_alike
from stream_sttm.control.switches import Switches
from stream_sttm.errors import (
    ConfigError,
    NotPossible,
    NotReady,
    SourceDenied,
    UnknownQuery,
    UnknownStream,
)
from stream_sttm.storage.answers import AnswerStore
from workers.additions import LiveAdditions
from workers.control import Control

FILE: dict[str, Any] = {
    "streams": {"door": {"source": "scene://a"}},
    "queries": {"who": {"streams": ["door"], "ask": "Who?"}},
}
YARD = {"source": "scene://yard", "fps": 1.0}


@pytest.fixture
def store() -> Iterator[AnswerStore]:
    with AnswerStore(":memory:") as opened:
        yield opened


def settings(**more: Any) -> Settings:
    return Settings.model_validate({**FILE, **more})


def test_what_was_added_lies_beside_the_files_own(store: AnswerStore) -> None:
    additions = Additions(store.file)
    query = {"streams": ["yard", "door"], "ask": "What?"}
    additions.write({("streams", "yard"): YARD, ("queries", "what"): query})
    merged = additions.over(settings())
    assert list(merged.streams) == ["door", "yard"]
    assert list(merged.queries) == ["who", "what"]
    assert merged.streams["yard"].fps == 1.0
    assert additions.left_out == ()
    assert additions.over(merged) == merged


def test_what_fits_no_more_is_left_out_and_told(
    store: AnswerStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CAMERA_NOWHERE", raising=False)
    additions = Additions(store.file)
    query = {"streams": ["gone"], "ask": "What?"}
    nowhere = {"source": "rtsp://u:${CAMERA_NOWHERE}@192.0.2.1/x"}
    additions.write(
        {
            ("streams", "door"): YARD,
            ("streams", "far"): nowhere,
            ("queries", "what"): query,
            ("queries", "far"): {**query, "streams": ["far"]},
        }
    )
    merged = additions.over(settings())
    assert merged == settings()
    lines = "\n".join(additions.left_out)
    assert "streams.door: is in the configuration file now" in lines
    assert "no variable 'CAMERA_NOWHERE'" in lines
    assert "queries.what.streams: there is no stream 'gone'" in lines
    assert len(additions.left_out) == len(caplog.messages) == 4
    assert additions.load()["streams"]["far"] == nowhere  # kept for when it fits


@pytest.mark.parametrize(
    "source",
    [
        "rtsp://127.0.0.1/x",
        "rtsp://[::1]:8554/x",
        "http://192.168.1.9/video.mjpg",
        "http://169.254.169.254/latest/meta-data",
        "rtsp://[::ffff:10.0.0.1]/x",
        "file:///etc/passwd",
        "file:///etc/",
        "v4l2:///dev/video0",
        "v4l2:device?video=/dev/video0",
        "rtsp://192.0.2.1/${HOME}",
        "rtsp://192.0.2.1/${file:/etc/hostname}",
        ["rtsp://8.8.8.8/x", "rtsp://10.1.2.3/x"],
    ],
)
def test_source_of_a_stranger_reaches_nothing_of_this_site(source: str | list[str]) -> None:
    with pytest.raises(SourceDenied, match=r"streams\.x\.source"):
        stream_of("x", {"source": source}, SourceRules())


def test_rules_can_open_what_is_shut_to_strangers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAMERA_1", "p@ss")
    given = {"source": "rtsp://u:${CAMERA_1}@10.0.0.5/live"}
    stream = stream_of("x", given, SourceRules(hosts=["10.0.0.0/8"]))
    assert stream.source == "rtsp://u:p%40ss@10.0.0.5/live"
    assert masked.shown_stream(stream)["source"] == "rtsp://***@10.0.0.5/live"
    stream_of("x", given, SourceRules(http_private=True))
    video = f"file://{tmp_path}/a.mp4"
    stream_of("x", {"source": video}, SourceRules(folders=[str(tmp_path)]))
    with pytest.raises(SourceDenied, match=r"sources\.folders"):
        stream_of("x", {"source": video}, SourceRules(folders=["/nowhere"], http_private=True))


def test_rules_for_strangers_hold_for_what_came_over_http_alone() -> None:
    own, rules = StreamSettings(source="rtsp://camera.lan/x"), SourceRules()
    added = AddedStream(source="rtsp://camera.lan/x")
    assert access_of(own, rules).private
    assert not access_of(added, rules).private
    assert access_of(added, SourceRules(http_private=True)).private
    assert not reads_alike(own, added)


def test_no_credential_is_shown() -> None:
    told = settings(
        streams={
            "a": {"source": "rtsp://user:hush@h/x"},
            "b": {"source": ["ffmpeg:rtsp://user:hush@h/x", "http://h/v?password=hush"]},
        },
        queries={},
        sinks=["mqtt://user:hush@broker/p", "https://h/x#secret=hush"],
        store={"path": "postgresql://user:hush@h/db"},
        http={"token": "hush", "tokens": [{"name": "n", "hash": f"sha256:{'ab' * 32}"}]},
    )
    text = json.dumps(shown := masked.shown(told))
    assert "hush" not in text
    assert "abab" not in text
    assert shown["streams"]["b"]["source"] == ["rtsp://***@h/x", "http://h/v?password=***"]
    assert masked.shown(Settings())["http"]["token"] is None
    assert set(shown) == set(Settings.model_fields)


class Following(Control):
    """A control whose parts are none: it takes over what it is told."""

    async def reload(self, load: Any = None) -> Any:
        from stream_sttm.control import diff

        new = await asyncio.to_thread(load)
        change = diff.between(self.settings, new)
        self.settings = new
        return change


@pytest.fixture
def entries(store: AnswerStore) -> LiveAdditions:
    toggles, additions = Switches(store.file), Additions(store.file)
    return LiveAdditions(Following(additions.over(settings()), toggles), additions, toggles)


async def test_entry_comes_changes_and_goes(entries: LiveAdditions, store: AnswerStore) -> None:
    change = await entries.add("streams", "yard", YARD)
    assert change.streams.added == ("yard",)
    with pytest.raises(NotPossible, match="there is a stream 'yard' already"):
        await entries.add("streams", "yard", YARD)
    change = await entries.replace("streams", "yard", {**YARD, "fps": 2})
    assert change.streams.changed == ("yard",)
    assert entries.effective()["added"] == {"streams": ["yard"], "queries": []}
    Switches(store.file).throw({("yard", ""): False})
    await entries.remove("streams", "yard")
    await entries.remove("streams", "yard")
    assert entries.effective()["added"]["streams"] == []
    with store.file.reading() as db:
        assert db.execute("SELECT * FROM switches").fetchall() == []


async def test_what_is_the_files_is_not_touched(entries: LiveAdditions) -> None:
    for call in (
        entries.remove("streams", "door"),
        entries.remove("queries", "who"),
        entries.replace("streams", "door", YARD),
        entries.replace("queries", "who", {"streams": ["door"], "ask": "?"}),
    ):
        with pytest.raises(NotPossible, match=r"is in the configuration file: .*PUT /api/v1/"):
            await call
    with pytest.raises(NotPossible, match="already"):
        await entries.add("streams", "door", YARD)


async def test_stream_that_is_asked_goes_only_by_force(entries: LiveAdditions) -> None:
    await entries.add("streams", "yard", YARD)
    await entries.add("queries", "one", {"streams": ["yard"], "ask": "?"})
    await entries.add("queries", "two", {"streams": ["yard", "door"], "ask": "?"})
    with pytest.raises(NotPossible, match="is asked by queries: one, two"):
        await entries.remove("streams", "yard")
    await entries.remove("streams", "yard", is_forced=True)
    assert entries.effective()["added"] == {"streams": [], "queries": ["two"]}
    assert entries.shown("queries", "two")["streams"] == ["door"]


async def test_entry_with_a_fault_changes_nothing(entries: LiveAdditions) -> None:
    faulty: list[tuple[Any, str, dict[str, Any], type[Exception], str]] = [
        ("streams", "x", {"source": "nosuch://h/x"}, ConfigError, "nosuch"),
        ("streams", "x", {"source": "rtsp://127.0.0.1/x"}, SourceDenied, "private"),
        ("queries", "x", {"streams": ["nowhere"], "ask": "?"}, ConfigError, "no stream 'nowhere'"),
        ("queries", "x", {"streams": ["door"], "ask": "x" * 3000}, ConfigError, "3000 characters"),
        ("queries", "x", {"streams": ["door"], "ask": "\ud800"}, ConfigError, "valid Unicode"),
    ]
    for kind, name, given, error, line in faulty:
        with pytest.raises(error, match=line):
            await entries.add(kind, name, given)
    with pytest.raises(UnknownStream, match=r"no stream 'dor'.*did you mean 'door'"):
        await entries.replace("streams", "dor", YARD)
    with pytest.raises(UnknownQuery):
        entries.shown("queries", "x")
    assert entries.effective()["added"] == {"streams": [], "queries": []}


async def test_before_the_start_nothing_is_kept(store: AnswerStore) -> None:
    toggles, additions = Switches(store.file), Additions(store.file)
    entries = LiveAdditions(Control(settings(), toggles), additions, toggles)
    with pytest.raises(NotReady):
        await entries.add("streams", "yard", YARD)
    assert additions.load() == {"streams": {}, "queries": {}}
