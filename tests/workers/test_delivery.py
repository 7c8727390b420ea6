"""Delivery: everything to store and feed, news to each sink in order, nobody held up by anybody."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from prometheus_client import REGISTRY

from stream_sttm import metrics
from stream_sttm.api.feed import Feed
from stream_sttm.errors import SinkError, SinkRefused
from stream_sttm.sinks import Sink
from stream_sttm.sinks.mqtt.sink import MqttSink
from stream_sttm.storage.answers import AnswerStore
from stream_sttm.storage.events import EventLog
from stream_sttm.types import (
    Answer,
    Event,
    EventKind,
    Evidence,
    Frame,
    StreamState,
    StreamStatus,
)
from tests.support.answers import make_answer, make_event, make_status, until
from tests.support.mosquitto import Mosquitto
from workers import delivery
from workers.channel import Channel
from workers.delivery import Limits
from workers.sink_tasks import SinkTasks


class MemorySink:
    """A sink that keeps what it is given, while its gate is open and it is told of no error."""

    def __init__(self, name: str, *, is_open: bool = True) -> None:
        self.name = name
        self.taken: list[str] = []
        self.attempts = 0
        self.error: SinkError | None = None
        self.refuses: set[str] = set()
        self.gate = asyncio.Event()
        self.is_inside = False
        if is_open:
            self.gate.set()

    async def __aenter__(self) -> Self:
        self.is_inside = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self.is_inside = False

    async def send(self, answer: Answer) -> None:
        await self._take(answer.question.id)

    async def send_event(self, event: Event) -> None:
        await self._take(f"{event.id} {event.kind.value}")

    async def report(self, status: StreamStatus) -> None:
        await self._take(f"{status.stream} {status.state.value}")

    async def _take(self, what: str) -> None:
        self.attempts += 1
        await self.gate.wait()
        if what in self.refuses:
            raise SinkRefused("too large")
        if self.error is not None:
            raise self.error
        self.taken.append(what)


QUICK = Limits(first_pause=0.001, longest_pause=0.01, drain=0.2)


class Delivery:
    """A running delivery and what it delivers to."""

    def __init__(self, store: AnswerStore, feed: Feed, limits: Limits) -> None:
        self.channel: Channel[delivery.Outgoing] = Channel(5000)
        self.store = store
        self.log = EventLog(store.file)
        self.sink_tasks = SinkTasks(limits)
        self.feed = feed
        self.task: asyncio.Task[None]

    def put(self, *items: delivery.Outgoing) -> None:
        for item in items:
            self.channel.offer(item)

    def put_answers(self, *numbers: int, **more: Any) -> None:
        self.put(*(make_answer(str(n), number=n, **more) for n in numbers))

    def stored(self) -> list[str]:
        return [answer["id"] for answer in reversed(self.store.recent(limit=1000))]

    async def stop(self) -> None:
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task


@asynccontextmanager
async def running(
    *sinks: Sink, limits: Limits = QUICK, path: str | Path = ":memory:"
) -> AsyncIterator[Delivery]:
    with AnswerStore(path, busy_timeout=0.01) as store:
        one = Delivery(store, Feed(), limits)
        work = delivery.run(
            one.channel,
            store=one.store,
            sinks=sinks,
            feed=one.feed,
            limits=limits,
            events=one.log,
            sink_tasks=one.sink_tasks,
        )
        one.task = asyncio.create_task(work)
        try:
            yield one
        finally:
            if not one.task.done():
                await one.stop()


def ids(numbers: Sequence[int] | range) -> list[str]:
    return [f"q{number}" for number in numbers]


def dropped(sink: str, reason: str) -> float:
    return float(metrics.SINK_DROPPED.labels(sink, reason)._value.get())


def waiting(sink: str) -> float:
    return float(metrics.SINK_OUTBOX_DEPTH.labels(sink)._value.get())


async def test_answer_reaches_store_feed_and_every_sink_in_order() -> None:
    one, two = MemorySink("one"), MemorySink("two")
    async with running(one, two) as delivered, delivered.feed.subscribe() as reader:
        delivered.put_answers(*range(5))
        await until(lambda: len(one.taken) == len(two.taken) == 5 and len(delivered.stored()) == 5)
        assert [(await anext(reader))["id"] for _ in range(5)] == ids(range(5))
    assert one.taken == two.taken == ids(range(5))


async def test_only_news_reach_sinks_but_all_reach_store_and_feed() -> None:
    sink = MemorySink("news-only")
    async with running(sink) as delivered, delivered.feed.subscribe() as reader:
        delivered.put_answers(1, news=False)
        delivered.put_answers(2)
        await until(lambda: bool(sink.taken) and len(delivered.stored()) == 2)
        assert [(await anext(reader))["id"] for _ in range(2)] == ["q1", "q2"]
    assert sink.taken == ["q2"]


async def test_slow_sink_does_not_delay_others() -> None:
    slow, quick = MemorySink("slow", is_open=False), MemorySink("quick")
    async with running(slow, quick) as delivered:
        delivered.put_answers(*range(200))
        await until(lambda: len(quick.taken) == 200)
        assert slow.taken == []
        slow.gate.set()
        await until(lambda: len(slow.taken) == 200)
    assert slow.taken == quick.taken == ids(range(200))


async def test_failing_sink_is_tried_again_until_it_takes_all_in_order() -> None:
    sink = MemorySink("flaky")
    sink.error = SinkError("down")
    async with running(sink) as delivered:
        delivered.put_answers(1, 2, 3)
        await until(lambda: sink.attempts >= 4)
        assert waiting("flaky") == 3
        sink.error = None
        await until(lambda: len(sink.taken) == 3 and waiting("flaky") == 0)
    assert sink.taken == ["q1", "q2", "q3"]


async def test_trouble_is_logged_when_it_begins_and_when_it_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "workers")
    sink = MemorySink("logged")
    sink.error = SinkError("it is down")
    async with running(sink) as delivered:
        delivered.put_answers(1)
        await until(lambda: sink.attempts >= 5)
        sink.error = None
        await until(lambda: waiting("logged") == 0)
        delivered.put_answers(2)
        await until(lambda: len(sink.taken) == 2)
    assert [record.getMessage() for record in caplog.records] == [
        "sink logged: answers wait: it is down",
        "sink logged: delivering again, 0 dropped",
    ]


async def test_full_outbox_drops_the_oldest_counted() -> None:
    sink = MemorySink("full", is_open=False)
    async with running(sink, limits=Limits(capacity=3, drain=0.1)) as delivered:
        delivered.put_answers(0)
        await until(lambda: sink.attempts == 1)  # in hand, so not in the outbox
        delivered.put_answers(*range(1, 9))
        await until(lambda: dropped("full", "full") == 5)
        sink.gate.set()
        await until(lambda: len(sink.taken) == 4)
    assert sink.taken == ids([0, 6, 7, 8])


async def test_head_that_fails_while_the_outbox_fills_is_the_oldest_and_goes() -> None:
    sink = MemorySink("fills", is_open=False)
    async with running(sink, limits=Limits(capacity=2, first_pause=0.001)) as delivered:
        delivered.put_answers(0)
        await until(lambda: sink.attempts == 1)
        delivered.put_answers(1, 2)
        await until(lambda: waiting("fills") == 3)
        sink.error = SinkError("cut off")
        sink.gate.set()
        await until(lambda: dropped("fills", "full") == 1)
        sink.error = None
        await until(lambda: len(sink.taken) == 2)
    assert sink.taken == ["q1", "q2"]


async def test_answer_too_old_is_dropped_counted() -> None:
    sink = MemorySink("aged")
    sink.error = SinkError("down")
    async with running(sink, limits=Limits(max_age=0.05, first_pause=0.001)) as delivered:
        delivered.put_answers(1, 2)
        await until(lambda: dropped("aged", "expired") == 2 and waiting("aged") == 0)
        sink.error = None
        delivered.put_answers(3)
        await until(lambda: bool(sink.taken))
    assert sink.taken == ["q3"]


async def test_refused_answer_is_given_up_and_the_next_goes() -> None:
    sink = MemorySink("refusing")
    sink.refuses = {"q2"}
    async with running(sink) as delivered:
        delivered.put_answers(1, 2, 3)
        await until(lambda: len(sink.taken) == 2)
    assert sink.taken == ["q1", "q3"]
    assert dropped("refusing", "refused") == 1


async def test_only_the_newest_status_of_a_stream_waits() -> None:
    sink = MemorySink("states", is_open=False)
    async with running(sink) as delivered, delivered.feed.subscribe() as reader:
        delivered.put(make_status("door"))
        await until(lambda: sink.attempts == 1)
        for state in (StreamState.CONNECTING, StreamState.STALLED, StreamState.ONLINE):
            delivered.put(make_status("cam", state))
        delivered.put_answers(1)
        assert [(await anext(reader))["type"] for _ in range(5)] == ["status"] * 4 + ["answer"]
        sink.gate.set()
        await until(lambda: len(sink.taken) == 3)
    assert sink.taken == ["door online", "cam online", "q1"]


async def test_store_that_fails_is_counted_told_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "workers")
    sink = MemorySink("beside-store")
    before = metrics.STORE_ERRORS._value.get()
    async with running(sink, path=tmp_path / "a.db") as delivered:
        other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        delivered.put_answers(1, 2, 3)
        await until(lambda: len(sink.taken) == 3)
        await until(lambda: metrics.STORE_ERRORS._value.get() - before == 3)
        other.execute("ROLLBACK")
        other.close()
        delivered.put_answers(4)
        await until(lambda: delivered.stored() == ["q4"])
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert "is locked by another process" in lines[0]
    assert lines[1] == "answers are being kept again"


async def test_answers_too_old_to_keep_leave_the_store(tmp_path: Path) -> None:
    with AnswerStore(tmp_path / "a.db") as store:
        store.add(make_answer(number=1, answered_at=1000.0))
        store.add(make_answer(number=2))
    async with running(limits=Limits(keep_answers=86400), path=tmp_path / "a.db") as delivered:
        await until(lambda: delivered.stored() == ["q2"])


async def test_shutdown_delivers_what_waits_and_leaves_the_sinks() -> None:
    sink = MemorySink("leaving", is_open=False)
    async with running(sink, limits=Limits(drain=10)) as delivered:
        delivered.put_answers(1, 2, 3)
        await until(lambda: sink.attempts == 1)
        delivered.put_answers(4)  # still in the channel when the end comes
        delivered.task.cancel()
        await asyncio.sleep(0)
        sink.gate.set()
        await until(delivered.task.done)
        assert delivered.task.cancelled()
        assert delivered.stored() == sink.taken == ids([1, 2, 3, 4])
    assert not sink.is_inside


async def test_shutdown_does_not_wait_for_ever_and_counts_what_is_lost() -> None:
    sink = MemorySink("dead", is_open=False)
    async with running(sink, limits=Limits(drain=0.05)) as delivered:
        delivered.put_answers(1, 2, 3)
        await until(lambda: sink.attempts == 1)
        await delivered.stop()
    assert dropped("dead", "shutdown") == 3
    assert not sink.is_inside


async def test_lag_is_observed_per_stream_and_sink() -> None:
    async with running(MemorySink("measured")) as delivered:
        delivered.put_answers(1, stream="lagging")
        await until(lambda: bool(delivered.stored()))
        for sink in ("measured", "feed"):
            samples = metrics.EVENT_TO_ANSWER.labels("lagging", sink)
            await until(lambda samples=samples: samples._sum.get() >= 0.5)


@pytest.mark.server
async def test_broker_restart_loses_nothing_and_keeps_the_order(broker: Mosquitto) -> None:
    sink = MqttSink(broker.url, timeout=2)
    topic = "test/cam/query/look/answer"
    with broker.reader(topic, "-c", "-i", "outside-reader") as reader:
        async with running(sink) as delivered:
            delivered.put_answers(*range(20))
            await until(lambda: len(reader.payloads(topic)) >= 20)
            broker.stop(signal.SIGTERM)
            delivered.put_answers(*range(20, 120))
            await until(lambda: waiting(sink.name) >= 100)
            broker.start()
            await until(lambda: len(reader.payloads(topic)) >= 120, within=40)
    received = [json.loads(payload) for payload in reader.payloads(topic)]
    assert list(dict.fromkeys(body["id"] for body in received)) == ids(range(120))
    late = [body["event_to_answer_ms"] for body in received if body["id"] == "q119"]
    assert late[0] > 500  # measured when it was published, not when it was answered


@pytest.mark.server
async def test_dead_broker_does_not_delay_a_living_one(broker: Mosquitto) -> None:
    dead = MqttSink("mqtt://127.0.0.1:9/none", timeout=5)
    async with running(dead, MqttSink(broker.url)) as delivered:
        with broker.reader() as reader:
            delivered.put(make_status())
            delivered.put_answers(*range(50))
            await until(lambda: len(reader.payloads("test/cam/query/look/answer")) == 50)
            assert waiting(dead.name) == 51


# --- events


def snapshots(log: EventLog) -> list[str]:
    return [row["id"] for row in log.recent() if row["snapshot"]]


async def test_an_event_reaches_store_feed_and_sinks_and_its_picture_the_store_alone() -> None:
    sink = MemorySink("a")
    async with running(sink) as one, one.feed.subscribe() as reader:
        new = make_event(number=1)
        end = replace(new, kind=EventKind.END, ended_at=new.updated_at)
        picture = Frame("cam", np.zeros((8, 8, 3), np.uint8), 0.0, new.started_at)
        one.put(new, Evidence(new.id, picture), end)
        told = [await anext(reader), await anext(reader)]
        assert [(each["type"], each["kind"], each["id"]) for each in told] == [
            ("event", "new", "e1"), ("event", "end", "e1"),
        ]  # fmt: skip
        await until(lambda: sink.taken == ["e1 new", "e1 end"])
        await until(lambda: snapshots(one.log) == ["e1"])
        await until(lambda: one.log.event("e1")["kind"] == "end")
        assert one.log.snapshot("e1").startswith(b"\xff\xd8")


async def test_sinks_come_and_go_without_touching_another() -> None:
    first, second = MemorySink("a"), MemorySink("b")
    async with running(first) as one:
        one.put_answers(1)
        await until(lambda: first.taken == ["q1"])
        await one.sink_tasks.add(second)
        one.put_answers(2)
        await until(lambda: second.taken == ["q2"])
        await one.sink_tasks.remove(second)
        assert not second.is_inside
        one.put_answers(3)
        await until(lambda: first.taken == ["q1", "q2", "q3"])
        assert second.taken == ["q2"]
        assert first.is_inside
    assert not first.is_inside


async def test_a_sink_replaced_by_one_of_its_name_loses_nothing_and_the_two_never_meet() -> None:
    class Slow(MemorySink):
        async def __aexit__(self, *_: object) -> None:
            closing.set()
            await may_end.wait()
            self.is_inside = False

    closing, may_end = asyncio.Event(), asyncio.Event()
    first, second = Slow("a"), MemorySink("a")
    async with running(first) as one:
        one.put_answers(1)
        await until(lambda: first.taken == ["q1"])
        replacing = asyncio.create_task(one.sink_tasks.replace(first, second))
        await closing.wait()
        one.put_answers(2, 3)
        await until(lambda: len(one.stored()) == 3)
        assert not second.is_inside
        may_end.set()
        await replacing
        one.put_answers(4)
        await until(lambda: second.taken == ["q2", "q3", "q4"])
        assert first.taken == ["q1"]


async def test_metrics_of_a_sink_begin_at_zero_and_go_with_it() -> None:
    def reasons() -> set[str]:
        samples = (s for family in REGISTRY.collect() for s in family.samples)
        return {
            s.labels["reason"]
            for s in samples
            if s.labels.get("sink") == "passing" and "reason" in s.labels
        }

    sink, other = MemorySink("passing"), MemorySink("staying")
    async with running(other) as one:
        one.put_answers(1)
        await until(lambda: bool(other.taken))
        await one.sink_tasks.add(sink)
        assert {"full", "expired", "refused"} <= reasons()
        await one.sink_tasks.remove(sink)
        assert not reasons()


async def test_a_sink_that_hangs_is_taken_away_in_time() -> None:
    stuck = MemorySink("stuck", is_open=False)
    async with running(stuck) as one:
        one.put_answers(1)
        await until(lambda: stuck.attempts == 1)
        async with asyncio.timeout(10):
            await one.sink_tasks.remove(stuck)
        assert not stuck.is_inside
