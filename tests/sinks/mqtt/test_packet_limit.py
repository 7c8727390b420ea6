"""One message that a broker won't take is left out and told once; everything else goes on."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from stream_sttm.errors import SinkError, SinkRefused
from stream_sttm.sinks.mqtt.message import Message
from stream_sttm.sinks.mqtt.packet_limit import PacketLimit, packet_bytes
from stream_sttm.sinks.mqtt.sink import MqttSink
from tests.support.answers import make_answer, make_status, until
from tests.support.mosquitto import MakeBroker, Reader
from tests.support.scripted_service import Steered

LONG = "x" * 3000


class Pictured(Steered):
    """A service whose pictures are large."""

    def snapshot(self, stream: str) -> bytes | None:
        return b"j" * 5000


async def deliver(sink: MqttSink, number: int, text: str = "yes") -> None:
    """Send as an outbox does: again, until it is taken or refused for good."""
    while True:
        try:
            await sink.send(make_answer(text, number=number))
        except SinkRefused:
            return
        except SinkError:
            continue
        return


def heard(reader: Reader) -> list[str]:
    return [json.loads(each)["id"] for each in reader.payloads("test/cam/query/look/answer")]


@pytest.mark.server
@pytest.mark.parametrize("protocol", ["311", "5"])
@pytest.mark.parametrize(
    ("limit", "options", "left_out"),
    [
        (2000, "&discovery=homeassistant", "homeassistant/device/test_cam/config"),
        (4000, "&snapshots=1", "test/cam/snapshot"),
    ],
)
async def test_what_is_too_large_is_left_out_told_once_and_answers_flow(
    make_broker: MakeBroker,
    caplog: pytest.LogCaptureFixture,
    protocol: str,
    limit: int,
    options: str,
    left_out: str,
) -> None:
    broker = make_broker(extra=f"max_packet_size {limit}")
    broker.start()
    url = f"{broker.url}?protocol={protocol}{options}"
    with broker.reader("#") as reader:
        async with MqttSink(url, commands=Pictured()) as sink:
            await until(lambda: f"{left_out} takes" in caplog.text, within=40)
            if protocol == "5":
                assert f"the broker takes at most {limit}" in caplog.text
            await until(sink._is_connected.is_set, within=40)
            before = caplog.text.count("connection lost")
            for number in range(20):
                await deliver(sink, number)
            await until(lambda: bool(reader.payloads("test/stats")))
        assert list(dict.fromkeys(heard(reader))) == [f"q{number}" for number in range(20)]
        assert caplog.text.count(f"{left_out} takes") == 1
        assert protocol != "5" or before == 0


@pytest.mark.server
@pytest.mark.parametrize("protocol", ["311", "5"])
async def test_an_answer_a_status_or_attributes_too_large_hold_up_no_other(
    make_broker: MakeBroker, caplog: pytest.LogCaptureFixture, protocol: str
) -> None:
    broker = make_broker(extra="max_packet_size 2000")
    broker.start()
    with broker.reader("#") as reader:
        async with MqttSink(f"{broker.url}?protocol={protocol}") as sink:
            await deliver(sink, 1)
            await deliver(sink, 2, LONG)
            await deliver(sink, 3)
            status = make_status("door", reason=LONG)
            for _ in range(5):
                try:
                    await sink.report(status)
                    break
                except SinkError:
                    await until(sink._is_connected.is_set)
            await deliver(sink, 4)
            await until(lambda: "q4" in heard(reader))
        assert list(dict.fromkeys(heard(reader))) == ["q1", "q3", "q4"]
        assert reader.payloads("test/door/status")[-1:] == ["online"]
    for topic in ("test/cam/query/look/answer", "test/door/status/attributes"):
        assert caplog.text.count(f"{topic} takes") >= 1, caplog.text


# --- by itself


def message(topic: str, size: int) -> Message:
    return Message(topic, b"x" * size, is_retained=True)


@pytest.fixture
def limit() -> PacketLimit:
    return PacketLimit("broker:1883", vital="p/available")


def is_sent(limit: PacketLimit, *args: Any) -> bool:
    return limit.refusal(message(*args)) is None


def test_a_limit_that_the_broker_tells_is_kept_to_the_byte(limit: PacketLimit) -> None:
    exact = packet_bytes(message("p/a", 100))
    limit.connected(exact)
    assert is_sent(limit, "p/a", 100)
    assert not is_sent(limit, "p/a", 101)
    limit.connected(None)
    assert is_sent(limit, "p/a", 101)


def test_one_of_many_is_found_by_sending_them_one_at_a_time(limit: PacketLimit) -> None:
    many = [message(f"p/{n}", 100) for n in range(5)] + [message("p/large", 3000)]
    assert not limit.is_careful
    limit.hung_up(many)
    assert limit.is_careful
    assert is_sent(limit, "p/large", 3000)
    for _ in range(2):
        for one in many[:-1]:
            limit.took(one)
        limit.hung_up(many[-1:])
    assert not is_sent(limit, "p/large", 3000)
    assert not is_sent(limit, "p/never-tried", 4000)
    assert is_sent(limit, "p/large", 2000)
    assert not limit.is_careful


def test_what_goes_through_after_all_is_not_to_blame(limit: PacketLimit) -> None:
    for _ in range(5):
        limit.hung_up([message("p/a", 900)])
        limit.took(message("p/a", 900))
    assert is_sent(limit, "p/a", 900)


def test_a_small_one_that_the_broker_will_not_have_is_left_out_alone(limit: PacketLimit) -> None:
    limit.took(message("p/large", 5000))
    for _ in range(3):
        limit.hung_up([message("p/forbidden", 10)])
    assert not is_sent(limit, "p/forbidden", 10)
    assert is_sent(limit, "p/other", 10)


def test_the_topic_that_says_that_we_run_is_never_left_out(limit: PacketLimit) -> None:
    for _ in range(9):
        limit.hung_up([message("p/available", 6)])
    assert is_sent(limit, "p/available", 6)
    assert is_sent(limit, "p/other", 6)


def test_each_topic_is_told_once_with_its_size_and_the_limit(
    limit: PacketLimit, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    limit.connected(1000)
    for size in (2000, 3000, 2000):
        limit.refusal(message("p/a", size))
    limit.refusal(message("p/b", 2000))
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        f"mqtt broker broker:1883: p/a takes {packet_bytes(message('p/a', 2000))} bytes",
        f"mqtt broker broker:1883: p/b takes {packet_bytes(message('p/b', 2000))} bytes",
    ]
    assert all("at most 1000" in record.getMessage() for record in caplog.records)
