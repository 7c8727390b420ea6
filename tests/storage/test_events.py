"""Events and switches in the store's file: the newest telling counts, pictures are bounded, restarts go on."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stream_sttm.config.settings import Settings
from stream_sttm.control.switches import Switches, places
from stream_sttm.errors import UnknownEvent
from stream_sttm.storage.answers import MIGRATIONS, AnswerStore
from stream_sttm.storage.events import EventLog
from stream_sttm.types import Event, EventKind
from tests.support.answers import make_answer


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AnswerStore]:
    with AnswerStore(tmp_path / "answers.db") as opened:
        yield opened


def make_event(number: int) -> Event:
    """The beginning of an event, with the number as its id."""
    return Event(
        f"{number:032}", EventKind.NEW, "cam", "look", 1000.0, 1000.0, None, True, 0.9, "q1", (999.0, 1000.0)
    )  # fmt: skip


def counted(store: AnswerStore, table: str) -> int:
    with store.file.reading() as db:
        return int(db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])


def ended(event: Event, at: float = 1010.0) -> Event:
    return replace(event, kind=EventKind.END, updated_at=at, ended_at=at, state=False)


def test_an_event_is_kept_as_it_was_told_last(store: AnswerStore) -> None:
    log, event = EventLog(store.file), make_event(1)
    log.add(event, published_at=1000.5)
    log.add(ended(event), published_at=1010.25)
    (row,) = log.recent()
    assert row["seq"] == 1
    told = ended(event).as_dict(published_at=1010.25)
    assert {**row, "seq": 1} == {"seq": 1, **told}
    assert log.event(event.id) == row


def test_events_are_found_by_stream_query_and_page(store: AnswerStore) -> None:
    log = EventLog(store.file)
    for number in range(6):
        stream, query = ("door", "yard")[number % 2], ("a", "b")[number // 3]
        log.add(replace(make_event(number), stream=stream, query=query), published_at=0)
    assert [row["seq"] for row in log.recent(limit=2)] == [6, 5]
    assert [row["seq"] for row in log.recent(stream="door")] == [5, 3, 1]
    assert [row["seq"] for row in log.recent(stream="door", query="b", before=6)] == [5]


def test_a_snapshot_is_named_for_as_long_as_it_is_kept(store: AnswerStore) -> None:
    log = EventLog(store.file, keep_snapshots=2)
    for number in range(4):
        log.add(make_event(number), published_at=0)
        log.add_snapshot(make_event(number).id, b"jpeg %d" % number)
    kept = [row["snapshot"] for row in log.recent()]
    assert kept[:2] == [f"/api/v1/events/{make_event(n).id}/snapshot.jpg" for n in (3, 2)]
    assert kept[2:] == [None, None]
    assert log.snapshot(make_event(3).id) == b"jpeg 3"
    with pytest.raises(UnknownEvent, match="no picture"):
        log.snapshot(make_event(1).id)
    with pytest.raises(UnknownEvent, match="there is no event"):
        log.event("f" * 32)


def test_no_snapshot_is_kept_where_none_is_wanted(store: AnswerStore) -> None:
    log = EventLog(store.file, keep_snapshots=0)
    log.add_snapshot("1", b"x")
    assert counted(store, "snapshots") == 0


def test_what_is_over_is_pruned_by_age_and_what_goes_on_is_not(store: AnswerStore) -> None:
    log = EventLog(store.file)
    running, old, new = make_event(1), ended(make_event(2), 1010), ended(make_event(3), 2000)
    for event in (running, old, new):
        log.add(event, published_at=0)
        log.add_snapshot(event.id, b"x")
    log.prune(older_than=1500)
    assert {row["id"] for row in log.recent()} == {running.id, new.id}
    assert counted(store, "snapshots") == 2


def test_the_last_event_of_each_query_and_stream_comes_back_whole(tmp_path: Path) -> None:
    first, second = ended(make_event(1)), replace(make_event(2), escalated=True)
    elsewhere = replace(make_event(3), stream="yard", state="fire")
    with AnswerStore(tmp_path / "a.db") as store:
        for event in (first, second, elsewhere):
            EventLog(store.file).add(event, published_at=0)
    with AnswerStore(tmp_path / "a.db") as store:
        assert EventLog(store.file).last() == [second, elsewhere]


def test_a_store_of_the_version_before_gets_the_new_tables(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as db:
        for step in MIGRATIONS[:2]:
            db.executescript(step)
        db.execute("PRAGMA user_version = 2")
    db.close()
    with AnswerStore(path) as store:
        store.add(make_answer())
        EventLog(store.file).add(make_event(1), published_at=0)
        assert len(store.recent()) == len(EventLog(store.file).recent()) == 1


# --- switches


def settings(*, stream: bool = True, query: bool = True) -> Settings:
    return Settings(
        streams={
            "door": {"source": "scene://a", "enabled": stream},
            "yard": {"source": "scene://b"},
        },
        queries={"look": {"streams": ["door", "yard"], "ask": "Who?", "enabled": query}},
    )


def test_a_switch_outlives_the_process_and_holds_against_the_configuration(tmp_path: Path) -> None:
    with AnswerStore(tmp_path / "a.db") as store:
        Switches(store.file).throw({("door", ""): False, ("door", "look"): True})
        Switches(store.file).throw({("door", "look"): False, ("yard", "look"): False})
        Switches(store.file).throw({("yard", "look"): True})
    with AnswerStore(tmp_path / "a.db") as store:
        switches = Switches(store.file).load(settings())
    assert switches == {("door", ""): False, ("door", "look"): False}
    assert places(settings()) == dict.fromkeys(
        [("door", ""), ("yard", ""), ("door", "look"), ("yard", "look")], True
    )


def test_a_configuration_that_says_the_same_makes_a_switch_moot(store: AnswerStore) -> None:
    toggles = Switches(store.file)
    toggles.throw({("door", ""): False, ("gone", ""): False})
    assert toggles.load(settings(stream=False)) == {}
    assert toggles.load(settings(stream=True)) == {}  # the newest word
    assert counted(store, "switches") == 1  # what is gone may come back
