"""The answer store: once per id, newest first, pruned, migrated, and one line for every fault of SQLite."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from stream_sttm.errors import StoreError
from stream_sttm.storage import backends, export
from stream_sttm.storage.answers import MIGRATIONS, AnswerStore, Store
from stream_sttm.storage.sql_answers import MAX_LIMIT, Wanted
from stream_sttm.types import AnswerType, Form
from tests.support.answers import make_answer
from tests.support.postgres import PASSWORD, Postgres


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AnswerStore]:
    with AnswerStore(tmp_path / "answers.db", busy_timeout=0.05) as opened:
        yield opened


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.server)])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A store of each kind, empty."""
    if request.param == "sqlite":
        with AnswerStore(tmp_path / "kept.db") as opened:
            yield opened
        return
    server: Postgres = request.getfixturevalue("postgres")
    forget_all(server)
    with backends.open_store(server.url()) as opened:
        yield opened


def forget_all(server: Postgres) -> None:
    import psycopg

    with psycopg.connect(server.url(), autocommit=True) as db:
        db.execute("DROP TABLE IF EXISTS answers, stream_sttm_schema")


def numbers(answers: list[dict[str, object]]) -> list[object]:
    return [answer["id"] for answer in answers]


def test_answer_comes_back_as_it_went_in(kept: Store) -> None:
    answer = make_answer("sí, ein Kind 😀 \n'", query=None, news=False, structured={"a": [1.5]})
    assert kept.add(answer, published_at=answer.answered_at)
    (row,) = kept.recent()
    assert row == answer.as_dict(published_at=answer.answered_at) | {"seq": 1}


def test_the_character_nul_is_no_fault(kept: Store) -> None:
    kept.add(make_answer("before\0after"))
    assert kept.recent()[0]["answer"] in ("before\0after", "before\ufffdafter")


def test_adding_the_same_id_twice_keeps_one(kept: Store) -> None:
    assert kept.add(make_answer("first", number=7))
    assert not kept.add(make_answer("second", number=7))
    assert [row["answer"] for row in kept.recent()] == ["first"]


def test_newest_come_first_by_stream_and_query_and_page_by_page(kept: Store) -> None:
    for number in range(6):
        kept.add(make_answer(number=number, stream="ab"[number % 2], query="xyz"[number % 3]))
    assert numbers(kept.recent()) == ["q5", "q4", "q3", "q2", "q1", "q0"]
    assert numbers(kept.recent(stream="a")) == ["q4", "q2", "q0"]
    assert numbers(kept.recent(query="x")) == ["q3", "q0"]
    assert numbers(kept.recent(stream="a", query="x")) == ["q0"]
    first = kept.recent(limit=4)
    assert numbers(kept.recent(limit=4, before=first[-1]["seq"])) == ["q1", "q0"]
    assert kept.recent(limit=0) == []


def test_prune_deletes_what_is_older_and_nothing_else(kept: Store) -> None:
    for number in range(1200):
        kept.add(make_answer(number=number, answered_at=float(number)))
    assert kept.prune(older_than=1100.0) == 1100
    assert len(kept.recent(limit=1000)) == 100
    assert kept.prune(older_than=1100.0) == 0


def test_answers_outlive_the_process_and_an_id_is_still_known(tmp_path: Path) -> None:
    with AnswerStore(tmp_path / "a.db") as first:
        first.add(make_answer(number=1))
    with AnswerStore(tmp_path / "a.db") as second:
        assert not second.add(make_answer(number=1))
        assert numbers(second.recent()) == ["q1"]


def test_file_is_in_wal_mode_at_the_newest_schema(tmp_path: Path) -> None:
    with AnswerStore(tmp_path / "a.db"):
        db = sqlite3.connect(tmp_path / "a.db")
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        db.close()


def test_threads_may_write_and_read_at_once(store: AnswerStore) -> None:
    def write(start: int) -> None:
        for number in range(start, start + 50):
            store.add(make_answer(number=number))
            store.recent(limit=5)

    threads = [threading.Thread(target=write, args=(start,)) for start in range(0, 200, 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.recent(limit=1000)) == 200


def fault(path: Path | str) -> str:
    with pytest.raises(StoreError) as caught:
        AnswerStore(path, busy_timeout=0.05)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_missing_folder_is_named(tmp_path: Path) -> None:
    assert f"folder {tmp_path / 'no'} does not exist" in fault(tmp_path / "no" / "a.db")


def test_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    assert "can't be opened" in fault(tmp_path)


def test_folder_that_can_not_be_written_is_refused() -> None:
    assert "can't be opened" in fault("/proc/answers.db")


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text("not a database at all, but long enough to look like one" * 9)
    assert "is no SQLite file" in fault(tmp_path / "a.db")


def test_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "a.db")
    db.execute("PRAGMA user_version = 99")
    db.close()
    assert "newer version" in fault(tmp_path / "a.db")


def test_failed_migration_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "a.db")
    db.execute("CREATE TABLE answers_by_age (x)")  # collides with the last step of the schema
    db.close()
    fault(tmp_path / "a.db")
    db = sqlite3.connect(tmp_path / "a.db")
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    version = db.execute("PRAGMA user_version").fetchone()[0]
    db.close()
    assert (tables, version) == ({"answers_by_age"}, 0)


def test_lock_of_another_process_is_one_line_and_passes(store: AnswerStore, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "answers.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="is locked by another process"):
        store.add(make_answer())
    other.execute("ROLLBACK")
    other.close()
    assert store.add(make_answer())


def test_full_disk_is_one_line_and_what_was_kept_stays_readable(store: AnswerStore) -> None:
    store.add(make_answer(number=1))
    store._file._db.execute(
        "PRAGMA max_page_count = 16"
    )  # SQLite then reports what a full disk reports
    with pytest.raises(StoreError, match="the disk is full"):
        store.add(make_answer("x" * 100_000, number=2))
    assert numbers(store.recent()) == ["q1"]


def test_a_file_taken_away_is_begun_anew_and_nothing_is_written_to_nowhere(
    store: AnswerStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.add(make_answer("before", number=1))
    for file in tmp_path.glob("answers.db*"):
        file.unlink()
    store.add(make_answer("after", number=2))
    assert numbers(store.recent()) == ["q2"]
    with AnswerStore(tmp_path / "answers.db") as other:
        assert numbers(other.recent()) == ["q2"]
    assert caplog.text.count("taken away") == 1
    moved = tmp_path.with_name("moved")
    tmp_path.rename(moved)
    with pytest.raises(StoreError, match="does not exist; create it"):
        store.add(make_answer(number=3))
    moved.rename(tmp_path)
    assert store.add(make_answer(number=4))
    assert numbers(store.recent()) == ["q4", "q2"]


def test_closed_store_says_so(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path / "a.db")
    store.close()
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.recent()


def test_text_that_is_no_unicode_is_refused_not_a_crash(store: AnswerStore) -> None:
    with pytest.raises(StoreError):
        store.add(make_answer("\ud800"))
    assert store.recent() == []


# --- searching and exporting


def test_words_of_question_and_answer_are_found_in_any_order_and_case(kept: Store) -> None:
    texts = ["A red van stands here", "nobody", 'he said "stop', "red, then GREEN", "(NOT) a* b:c"]
    for number, text in enumerate(texts):
        kept.add(make_answer(text, number=number))
    assert numbers(kept.find(Wanted(text="VAN red"))) == ["q0"]
    assert numbers(kept.find(Wanted(text="red"))) == ["q4", "q3", "q2", "q1", "q0"]  # the question
    assert numbers(kept.find(Wanted(text="green"))) == ["q3"]
    assert numbers(kept.find(Wanted(text='said "stop'))) == ["q2"]
    assert numbers(kept.find(Wanted(text="NOT a* b:c"))) == ["q4"]
    assert kept.find(Wanted(text="gre")) == []


@pytest.mark.parametrize("text", ["", " ", '"', "'", "*", "AND", "^-:()", "\0", "\ud800", "NEAR("])
def test_no_text_is_an_error_of_the_search(kept: Store, text: str) -> None:
    kept.add(make_answer())
    assert kept.find(Wanted(text=text)) == []


def test_what_is_deleted_is_not_found_any_more(kept: Store) -> None:
    kept.add(make_answer("a heron", number=1, answered_at=1000.0))
    kept.add(make_answer("a heron", number=2))
    kept.prune(older_than=2000.0)
    assert numbers(kept.find(Wanted(text="heron"))) == ["q2"]


def test_answers_of_before_the_index_are_found_too(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "a.db")
    for step in MIGRATIONS[:2]:
        db.executescript(step)
    db.execute("PRAGMA user_version = 2")
    db.execute(
        "INSERT INTO answers VALUES (7, 'old', 'cam', NULL, 'Is it?', 'a heron', 1, 1, '[0, 1]',"
        " 1, 1, 1, '{}', 'demo', 'text', 'null', NULL)"
    )
    db.commit()
    db.close()
    with AnswerStore(tmp_path / "a.db") as store:
        store.add(make_answer("another heron"))
        assert numbers(store.find(Wanted(text="heron"))) == ["q1", "old"]


def test_type_and_time_narrow_a_search_and_the_cursor_goes_on(kept: Store) -> None:
    for number in range(6):
        kind = AnswerType.YES_NO if number % 2 else AnswerType.TEXT
        kept.add(make_answer(number=number, answered_at=100.0 + number, form=Form(kind)))
    assert numbers(kept.find(Wanted(since=102.0, until=105.0))) == ["q4", "q3", "q2"]
    yes_no = Wanted(answer_type=AnswerType.YES_NO, stream="cam", query="look")
    first = kept.find(yes_no, limit=2)
    assert numbers(first) == ["q5", "q3"]
    assert numbers(kept.find(yes_no, limit=2, before=first[-1]["seq"])) == ["q1"]


def test_export_is_oldest_first_in_pages_and_whole(kept: Store) -> None:
    for number in range(MAX_LIMIT + 5):
        kept.add(make_answer(number=number))
    export = kept.export()
    begun = [next(export) for _ in range(3)]
    kept.add(make_answer("late", number=99_999))
    told = [*begun, *export]
    assert numbers(told) == [*(f"q{n}" for n in range(MAX_LIMIT + 5)), "q99999"]


def test_jsonl_gives_back_what_was_kept(kept: Store) -> None:
    kept.add(make_answer('two\nlines, "quoted" and 😀', number=1))
    kept.add(make_answer(number=2, query=None))
    lines = "".join(export.jsonl(kept.export())).splitlines()
    assert [json.loads(line) for line in lines] == list(kept.export())


def test_csv_holds_every_field_and_starts_no_formula(kept: Store) -> None:
    texts = ['=HYPERLINK("http://x")', "two\nlines", "-3.5", "@home", "plain"]
    for number, text in enumerate(texts):
        kept.add(make_answer(text, number=number))
    rows = list(csv.DictReader(io.StringIO("".join(export.csv_lines(kept.export())))))
    assert [row["answer"] for row in rows] == [f"'{texts[0]}", texts[1], "-3.5", "'@home", "plain"]
    (first, *_) = kept.export()
    assert set(rows[0]) == set(first)
    assert json.loads(rows[0]["tokens"]) == first["tokens"]


# --- PostgreSQL


@pytest.fixture
def server(postgres: Postgres) -> Postgres:
    forget_all(postgres)
    return postgres


@pytest.mark.server
def test_a_server_that_was_started_anew_is_found_again(server: Postgres) -> None:
    with backends.open_store(server.url()) as store:
        store.add(make_answer(number=1))
        server.stop()
        with pytest.raises(StoreError, match="nobody listens there"):
            store.add(make_answer(number=2))
        server.start()
        assert store.add(make_answer(number=3))
        assert numbers(store.recent()) == ["q3", "q1"]


@pytest.mark.server
def test_several_services_may_start_and_write_at_once(server: Postgres) -> None:
    def write(start: int) -> None:
        with backends.open_store(server.url()) as store:
            for number in range(start, start + 20):
                store.add(make_answer(number=number % 60))

    threads = [threading.Thread(target=write, args=(start,)) for start in range(0, 80, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with backends.open_store(server.url()) as store:
        assert len(store.recent(limit=1000)) == 60


@pytest.mark.server
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("postgres", "nothing"), "no such user, database or table"),
        ((quote(PASSWORD, safe=""), "wrong-secret"), "user or password refused"),
        (("/postgres", "x/postgres"), "invalid integer value"),
    ],
)
def test_a_database_that_can_not_be_used_is_one_line_without_the_password(
    server: Postgres, change: tuple[str, str], words: str
) -> None:
    url = change[1].join(server.url().rsplit(change[0], 1))
    with pytest.raises(StoreError, match=words) as caught:
        backends.open_store(url)
    told = str(caught.value)
    assert "\n" not in told
    assert PASSWORD not in told
    assert "wrong-secret" not in told


@pytest.mark.server
def test_a_database_of_a_newer_version_is_left_alone(server: Postgres) -> None:
    import psycopg

    backends.open_store(server.url()).close()
    with psycopg.connect(server.url(), autocommit=True) as db:
        db.execute("UPDATE stream_sttm_schema SET version = 99")
    with pytest.raises(StoreError, match="newer version"):
        backends.open_store(server.url())


@pytest.mark.server
def test_a_closed_connection_says_so(server: Postgres) -> None:
    store = backends.open_store(server.url())
    store.close()
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.recent()
