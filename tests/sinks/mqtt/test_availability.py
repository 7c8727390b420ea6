"""`available` says `online` while the service is connected, whatever a dead predecessor still says at the broker."""

from __future__ import annotations

import asyncio
import logging
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from stream_sttm.sinks.mqtt.client_id import ClientId
from stream_sttm.sinks.mqtt.sink import MqttSink
from stream_sttm.sinks.mqtt.url import parse
from tests.support.answers import make_answer, until
from tests.support.mosquitto import Mosquitto, Reader
from tests.support.scripted_service import Steered
from tests.support.tcp_proxy import Proxy


def say(broker: Mosquitto, payload: str) -> None:
    command = ["mosquitto_pub", "-h", "127.0.0.1", "-p", str(broker.port), "-q", "1", "-r"]
    text = ["-m", payload] if payload else ["-n"]
    subprocess.run([*command, "-t", "test/available", *text], check=True, timeout=20)


@contextmanager
def reading(broker: Mosquitto) -> Iterator[Reader]:
    with broker.reader("test/available") as reader:
        yield reader


@pytest.mark.server
@pytest.mark.parametrize("protocol", ["311", "5"])
async def test_a_half_open_predecessor_speaks_before_us_or_never(
    broker: Mosquitto, protocol: str
) -> None:
    """Its last will comes when we take its session over, not a keepalive later."""
    with reading(broker) as reader, ExitStack() as held:
        async with Proxy(broker.port) as proxy:
            url = f"mqtt://127.0.0.1:{proxy.port}/test?protocol={protocol}"
            async with MqttSink(url) as sink:
                await sink.send(make_answer())
                held.callback(proxy.drop_towards_us())
                await until(lambda: len(reader.payloads("test/available")) >= 2)
                await until(lambda: reader.payloads("test/available")[-1] == "online")
                told = reader.payloads("test/available")
                await sink.send(make_answer(number=2))
        assert told in (["online", "offline", "online"], ["online", "online"])


@pytest.mark.server
@pytest.mark.parametrize("payload", ["offline", "stopped", ""])
@pytest.mark.parametrize("with_commands", [True, False])
async def test_what_others_say_of_us_is_corrected(
    broker: Mosquitto, payload: str, with_commands: bool
) -> None:
    commands = Steered() if with_commands else None
    with reading(broker) as reader:
        async with MqttSink(broker.url, commands=commands) as sink:
            await sink.send(make_answer())
            await asyncio.to_thread(say, broker, payload)
            await until(lambda: len(reader.payloads("test/available")) == 3)
            told = reader.payloads("test/available")
            assert [each or "" for each in told] == ["online", payload, "online"]
        await until(lambda: reader.payloads("test/available")[-1] == "stopped")


@pytest.mark.server
async def test_corrections_are_bounded_however_often_we_are_contradicted(
    broker: Mosquitto,
) -> None:
    command = ["mosquitto_pub", "-h", "127.0.0.1", "-p", str(broker.port), "-q", "1", "-l"]
    with reading(broker) as reader:
        async with MqttSink(broker.url) as sink:
            await sink.send(make_answer())
            many = b"offline\n" * 200
            await asyncio.to_thread(
                subprocess.run, [*command, "-t", "test/available"], input=many, check=True
            )
            await until(lambda: reader.payloads("test/available").count("offline") == 200)
            await until(lambda: reader.payloads("test/available")[-1] == "online")
        assert reader.payloads("test/available").count("online") < 20


@pytest.mark.server
@pytest.mark.parametrize("protocol", ["311", "5"])
async def test_two_services_of_one_prefix_end_their_fight_and_say_so_once(
    broker: Mosquitto, protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    url = f"{broker.url}?protocol={protocol}"
    async with MqttSink(url) as one, MqttSink(url) as two:
        await until(lambda: one._client_id.value != two._client_id.value, within=40)
        await asyncio.gather(one._connected(), two._connected())
        await one.send(make_answer(number=1))
        await two.send(make_answer(number=2))
        assert "give each service its own prefix or node=" in caplog.text
        assert caplog.text.count("pushes this one out") <= 2  # once for each of the two


def test_an_id_is_the_same_over_restarts_and_differs_by_prefix_and_node() -> None:
    def value(url: str) -> str:
        return ClientId(parse(url)).value

    same = "mqtt://broker/home"
    assert value(same) == value(f"{same}?snapshots=5") == value("mqtt://u:p@other/home")
    others = [same, "mqtt://broker/cabin", f"{same}?node=a", f"{same}?node=b"]
    assert len({value(url) for url in others}) == len(others)
    assert all(len(value(url)) <= 23 for url in others)


def test_an_id_is_kept_through_losses_that_are_far_apart() -> None:
    patient, fighting = ClientId(parse("mqtt://broker/a")), ClientId(parse("mqtt://broker/a"))
    first = patient.value
    assert not any(patient.pushed_out(now) for now in (0, 100, 200, 300, 400))
    assert patient.value == first
    assert [fighting.pushed_out(now) for now in (0, 1, 2, 3, 4, 5)].count(True) == 1
    assert fighting.value != first
