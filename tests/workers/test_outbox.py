"""The outbox: what can't leave outlives the process, in order and bounded, on any disk; a sink misses nothing."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest

from stream_sttm import metrics
from stream_sttm.errors import SinkError, SinkRefused, StoreError
from stream_sttm.sinks import Sink
from stream_sttm.sinks.mqtt.sink import MqttSink
from stream_sttm.storage.outbox import Entry, OutboxTable
from stream_sttm.types import Answer, AnswerType, Event, EventKind, Form, StreamStatus
from tests.support.answers import make_answer, make_event, make_status, until
from tests.support.mosquitto import MakeBroker
from workers.durable_queue import Limits
from workers.outbox import Outbox

_log = logging.getLogger(__name__)
QUICK = Limits(first_pause=0.001, longest_pause=0.01, grace=0.01)


class Taker:
    """A sink that takes several things at once, while it is open."""

    def __init__(self, name: str = "taker", *, is_open: bool = True) -> None:
        self.name = name
        self.is_open = is_open
        self.taken: list[str] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def send(self, answer: Answer) -> None:
        raise AssertionError("one by one, though it takes several at once")

    async def send_event(self, event: Event) -> None:
        raise AssertionError("one by one, though it takes several at once")

    async def report(self, status: StreamStatus) -> None:
        self._must_be_open()

    async def send_all(self, items: Sequence[Answer | Event]) -> list[SinkRefused | None]:
        await asyncio.sleep(0)
        self._must_be_open()
        self.taken += [each.question.id if isinstance(each, Answer) else each.id for each in items]
        return [None] * len(items)

    def _must_be_open(self) -> None:
        if not self.is_open:
            raise SinkError("closed")


class Moody(Taker):
    """A sink that takes a few, then none, cuts off, or takes and denies it: whatever a network does."""

    def __init__(self, seed: int) -> None:
        super().__init__("moody")
        self._random = random.Random(seed)

    async def send_all(self, items: Sequence[Answer | Event]) -> list[SinkRefused | None]:
        mood = self._random.random()
        if mood < 0.3:
            raise SinkError("not now")
        count = self._random.randint(1, len(items))
        told = await super().send_all(items[:count])
        if mood < 0.5:
            raise SinkError("the acknowledgement was lost")
        return told if mood > 0.8 else told[: self._random.randint(1, count)]


@asynccontextmanager
async def running(
    sink: Sink, backlog: OutboxTable | None, limits: Limits = QUICK
) -> AsyncIterator[Outbox]:
    """An outbox from its opening to its close, as in delivery."""
    async with sink:
        box = Outbox(sink, limits, backlog)
        await box.open()
        task = asyncio.create_task(box.run())
        try:
            yield box
        finally:
            task.cancel()
            await asyncio.wait([task])
            await box.close("shutdown")


def answers(*numbers: int) -> list[Answer]:
    return [make_answer(number=number) for number in numbers]


def ids(numbers: Sequence[int] | range) -> list[str]:
    return [f"q{number}" for number in numbers]


def dropped(sink: str, reason: str) -> float:
    return float(metrics.SINK_DROPPED.labels(sink, reason)._value.get())


def remove(folder: Path) -> None:
    for file in folder.glob("outbox.db*"):
        file.unlink()


@pytest.fixture
def backlog(tmp_path: Path) -> Iterator[OutboxTable]:
    with OutboxTable(tmp_path / "outbox.db", busy_timeout=0.05) as opened:
        yield opened


# --- the backlog


def test_what_waits_comes_back_as_it_was(backlog: OutboxTable) -> None:
    form = Form(AnswerType.CHOICE, ("red", "blue"), '{"a": 1}')
    items: list[Answer | Event] = [
        make_answer("half a \ud800 character, \x00", query=None, news=False),
        replace(make_answer("7", form=form, structured=7.0), confidence=0.25),
        make_answer("{}", structured={"a": [1, None, "b"]}),
        make_event(EventKind.END),
    ]
    backlog.add("one", [Entry(seq, 5.0, item) for seq, item in enumerate(items, start=1)])
    assert [entry.item for entry in backlog.first("one", after=0, limit=9)] == items
    assert backlog.first("other", after=0, limit=9) == []


def test_rows_are_counted_removed_and_dropped_by_number(backlog: OutboxTable) -> None:
    backlog.add("one", [Entry(seq, float(seq), make_answer(number=seq)) for seq in range(1, 11)])
    backlog.add("one", [Entry(10, 10.0, make_answer("again", number=10))])
    backlog.add("two", [Entry(1, 1.0, make_answer())])
    backlog.remove("one", through=3)
    assert backlog.drop("one", after=4, count=2) == 2
    assert [entry.seq for entry in backlog.first("one", after=0, limit=3)] == [4, 7, 8]
    assert [entry.seq for entry in backlog.first("one", after=8, limit=9)] == [9, 10]
    assert backlog.count("one") == (5, 10)
    assert backlog.forget(before=9.0) == 4
    assert backlog.count("two") == (0, 0)


# --- the outbox


async def test_what_leaves_at_once_is_never_written(backlog: OutboxTable) -> None:
    sink = Taker()
    async with running(sink, backlog, Limits(grace=0.05)) as box:
        for number in range(50):
            box.put(make_answer(number=number))
            await until(lambda number=number: len(sink.taken) > number)
        await asyncio.sleep(0.1)
        assert backlog._file._db.total_changes == 0


async def test_what_waits_is_on_disk_and_leaves_it_when_it_was_taken(backlog: OutboxTable) -> None:
    sink = Taker(is_open=False)
    async with running(sink, backlog) as box:
        for item in [*answers(1, 2), make_event(number=3), *answers(4)]:
            box.put(item)
        await until(lambda: backlog.count("taker")[0] == 4)
        sink.is_open = True
        await until(lambda: backlog.count("taker")[0] == 0)
    assert sink.taken == ["q1", "q2", "e3", "q4"]


async def test_what_waited_at_the_end_goes_first_after_the_next_start(backlog: OutboxTable) -> None:
    async with running(Taker(is_open=False), backlog) as box:
        for item in answers(*range(5)):
            box.put(item)
    sink = Taker()
    async with running(sink, backlog) as box:
        for item in answers(*range(5, 8)):
            box.put(item)
        await until(lambda: len(sink.taken) == 8)
    assert sink.taken == ids(range(8))
    assert dropped("taker", "shutdown") == 0


async def test_without_a_backlog_what_waits_at_the_end_is_lost_and_counted() -> None:
    async with running(Taker("memory", is_open=False), None) as box:
        for item in answers(1, 2):
            box.put(item)
    assert dropped("memory", "shutdown") == 2


@pytest.mark.parametrize("seed", range(6))
async def test_no_mood_of_a_sink_loses_or_reorders_anything(
    backlog: OutboxTable, seed: int
) -> None:
    sink, rest = Moody(seed), random.Random(seed)
    limits = replace(QUICK, batch=7, grace=0.0005 if seed % 2 else 0.02)
    async with running(sink, backlog, limits) as box:
        for number in range(300):
            box.put(make_answer(number=number))
            if rest.random() < 0.1:
                await asyncio.sleep(rest.choice((0, 0.001, 0.02)))
        await until(lambda: box.level.emptied.is_set())
    first_seen = list(dict.fromkeys(sink.taken))
    assert first_seen == ids(range(300))
    assert backlog.count("moody")[0] == 0


async def test_too_many_on_disk_let_the_oldest_go(backlog: OutboxTable) -> None:
    sink = Taker("bounded", is_open=False)
    async with running(sink, backlog, replace(QUICK, capacity=10, batch=4)) as box:
        for item in answers(*range(100)):
            box.put(item)
        await until(lambda: dropped("bounded", "full") == 90)
        await until(lambda: backlog.count("bounded")[0] == 10)
        sink.is_open = True
        await until(lambda: len(sink.taken) == 10)
    assert sink.taken == ids(range(90, 100))


async def test_too_old_on_disk_is_dropped_counted(backlog: OutboxTable) -> None:
    old = time.time() - 100
    entries = [Entry(s, old if s < 90 else time.time(), make_answer(number=s)) for s in range(100)]
    backlog.add("aged", entries)
    backlog.add("gone", entries[:1])  # a sink that is configured no more
    sink = Taker("aged", is_open=False)
    async with running(sink, backlog, replace(QUICK, max_age=99.5, batch=8)) as box:
        assert backlog.count("gone") == (0, 0)
        sink.is_open = True
        await until(lambda: box.level.emptied.is_set())
    assert sink.taken == ids(range(90, 100))


async def test_a_row_that_can_not_be_read_is_dropped_counted(backlog: OutboxTable) -> None:
    backlog.add("odd", [Entry(s, time.time(), make_answer(number=s)) for s in range(1, 5)])
    with backlog._file.writing() as db:
        db.execute("UPDATE waiting SET body = '{\"question\": 1}' WHERE seq = 1")
        db.execute("UPDATE waiting SET body = 'not JSON' WHERE seq = 3")
    sink = Taker("odd")
    async with running(sink, backlog) as box:
        await until(lambda: box.level.emptied.is_set())
    assert sink.taken == ["q2", "q4"]
    assert dropped("odd", "unreadable") == 2


async def test_a_refused_one_among_many_is_given_up_alone(
    backlog: OutboxTable, caplog: pytest.LogCaptureFixture
) -> None:
    class Choosy(Taker):
        async def send_all(self, items: Sequence[Answer | Event]) -> list[SinkRefused | None]:
            await super().send_all(items)
            odd = [int(each.question.id[1:]) % 2 for each in items]  # type: ignore[union-attr]
            return [SinkRefused("too odd") if is_odd else None for is_odd in odd]

    sink = Choosy("choosy")
    async with running(sink, backlog) as box:
        for item in answers(*range(10)):
            box.put(item)
        await until(lambda: box.level.emptied.is_set())
    assert sink.taken == ids(range(10))
    assert dropped("choosy", "refused") == 5
    assert caplog.text.count("too odd") == 1


# --- disks


async def test_full_disk_is_one_line_and_memory_takes_over_in_order(
    backlog: OutboxTable, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.durable_queue._SAVE_AGAIN", 0.02)
    sink = Taker("on-full-disk", is_open=False)
    async with running(sink, backlog) as box:
        for item in answers(*range(20)):
            box.put(item)
        await until(lambda: backlog.count(sink.name)[0] == 20)
        backlog._file._db.execute("PRAGMA max_page_count = 1")  # as a full disk
        for item in answers(*range(20, 500)):
            box.put(item)
        await until(lambda: "wait in memory alone" in caplog.text)
        await asyncio.sleep(0.1)
        sink.is_open = True
        await until(lambda: len(sink.taken) == 500)
        backlog._file._db.execute("PRAGMA max_page_count = 100000")
        await until(lambda: backlog.count(sink.name)[0] == 0)
    assert sink.taken == ids(range(500))
    assert caplog.text.count("wait in memory alone") == 1
    assert "the disk is full; make room or lower outbox.capacity" in caplog.text


async def test_disk_that_has_room_again_is_used_again(
    backlog: OutboxTable, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.durable_queue._SAVE_AGAIN", 0.02)
    caplog.set_level("INFO", "workers")
    other = sqlite3.connect(backlog._file.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    sink = Taker("locked-out", is_open=False)
    async with running(sink, backlog) as box:
        for item in answers(1, 2, 3):
            box.put(item)
        await until(lambda: "is locked by another process" in caplog.text)
        other.execute("ROLLBACK")
        other.close()
        await until(lambda: backlog.count("locked-out")[0] == 3)
        assert "kept on disk again" in caplog.text


async def test_a_file_that_is_taken_away_is_counted_as_lost_and_begun_anew(
    backlog: OutboxTable, tmp_path: Path
) -> None:
    sink = Taker("robbed", is_open=False)
    async with running(sink, backlog) as box:
        for item in answers(1, 2, 3):
            box.put(item)
        await until(lambda: backlog.count("robbed")[0] == 3)
        remove(tmp_path)
        box.put(make_answer(number=4))
        await until(lambda: backlog.count("robbed")[0] == 1)
        sink.is_open = True
        await until(lambda: sink.taken == ["q4"])
        await until(lambda: dropped("robbed", "lost") == 3)


async def test_a_file_that_breaks_while_it_is_read_stays_behind_and_the_rest_goes(
    backlog: OutboxTable, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Taker("broken", is_open=False)
    async with running(sink, backlog) as box:
        for item in answers(1, 2, 3):
            box.put(item)
        await until(lambda: backlog.count("broken")[0] == 3)
        backlog.close()
        box.put(make_answer(number=4))
        await until(lambda: "answers that wait on disk stay there" in caplog.text)
        sink.is_open = True
        await until(lambda: sink.taken == ["q4"])


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "outbox.db").write_text("this is no database, however long it may be" * 50)
    with pytest.raises(StoreError, match=r"outbox .*: is no SQLite file; .* change outbox\.path"):
        OutboxTable(tmp_path / "outbox.db")


# --- with a real broker

KILLED = """
import asyncio, sys
from stream_sttm.storage.outbox import OutboxTable
from stream_sttm.sinks.mqtt.sink import MqttSink
from tests.support.answers import make_answer, make_status
from workers.outbox import Outbox
from workers.durable_queue import Limits
async def main():
    async with MqttSink(sys.argv[1]) as sink:
        box = Outbox(sink, Limits(), OutboxTable(sys.argv[2]))
        await box.open()
        for number in range(300):
            box.put(make_answer(number=number))
        await box.run()
asyncio.run(main())
"""


@pytest.mark.server
async def test_answers_of_a_killed_process_are_delivered_by_the_next(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    broker = make_broker()
    path = tmp_path / "outbox.db"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, broker.url, path, cwd=Path(__file__).parents[2]
    )
    sink = MqttSink(broker.url)
    with OutboxTable(path) as backlog:
        await until(lambda: backlog.count(sink.name)[0] == 300, within=60)
        process.kill()
        await process.wait()
        broker.start()
        topic = "test/cam/query/look/answer"
        with broker.reader(topic) as reader:
            async with running(sink, backlog, Limits()) as box:
                box.put(make_answer(number=300))
                await until(lambda: len(reader.payloads(topic)) >= 301)
                await until(lambda: backlog.count(sink.name)[0] == 0)
            received = [json.loads(payload)["id"] for payload in reader.payloads(topic)]
    assert received == ids(range(301))


@pytest.mark.server
@pytest.mark.parametrize(("protocol", "count"), [("311", 10_000), ("5", 2_000)])
async def test_ten_thousand_answers_of_an_outage_arrive_in_order(
    make_broker: MakeBroker, tmp_path: Path, protocol: str, count: int
) -> None:
    broker = make_broker(extra="max_queued_messages 0\nmax_queued_bytes 0")
    sink = MqttSink(f"{broker.url}?protocol={protocol}")
    topic = "test/+/query/look/answer"
    with OutboxTable(tmp_path / "outbox.db") as backlog:
        async with running(sink, backlog, Limits()) as box:
            box.put(make_status("cam0"))
            for number in range(count):
                box.put(make_answer(number=number, stream=f"cam{number % 8}"))
            await until(lambda: backlog.count(sink.name)[0] == count)
            broker.start()
            with broker.reader(topic) as reader:
                started = time.perf_counter()
                await until(lambda: box.level.emptied.is_set(), within=100)
                took = time.perf_counter() - started
                await until(lambda: reader.count() >= count, within=60)
                received = [json.loads(each["payload"])["id"] for each in reader.messages()]
            await until(lambda: backlog.count(sink.name)[0] == 0)
    _log.info("MQTT %s: %d answers in %.1f s, %.0f/s", protocol, count, took, count / took)
    assert list(dict.fromkeys(received)) == ids(range(count))


@pytest.mark.server
async def test_broker_that_dies_again_and_again_loses_nothing(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    broker = make_broker()
    broker.start()
    sink = MqttSink(broker.url, timeout=2)
    topic = "test/cam/query/look/answer"
    with (
        OutboxTable(tmp_path / "outbox.db") as backlog,
        broker.reader(topic, "-c", "-i", "outside-reader") as reader,
    ):
        async with running(sink, backlog, replace(Limits(), batch=16)) as box:
            for number in range(600):
                box.put(make_answer(number=number))
                if number in (150, 400):
                    await until(lambda: len(reader.payloads(topic)) > 20)
                    broker.stop(signal.SIGTERM)  # which keeps what the reader has not had
                    await asyncio.sleep(0.3)
                    broker.start()
                await asyncio.sleep(0)
            await until(lambda: box.level.emptied.is_set(), within=60)
            await until(lambda: "q599" in reader.payloads(topic)[-1], within=30)
    received = [json.loads(payload)["id"] for payload in reader.payloads(topic)]
    assert list(dict.fromkeys(received)) == ids(range(600))
