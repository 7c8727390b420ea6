"""The retained state of a query says what is known now; where nobody knows, it says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stream_sttm.sinks.mqtt.sink import MqttSink
from stream_sttm.types import Answer, AnswerType, Form
from tests.support.answers import make_answer, until
from tests.support.mosquitto import Mosquitto, Reader
from tests.support.scripted_service import Steered

pytestmark = pytest.mark.server
TOPIC = "test/cam/query/person/state"


def yes(number: int = 1, answered_at: float | None = None) -> Answer:
    form = Form(AnswerType.YES_NO)
    return make_answer(
        "yes", number=number, query="person", form=form, structured=True, answered_at=answered_at
    )


def says(reader: Reader, word: str) -> Callable[[], bool]:
    return lambda: reader.payloads(TOPIC)[-1:] == [word]


async def test_a_state_that_nobody_knows_any_more_says_so_until_the_next_answer(
    broker: Mosquitto,
) -> None:
    service = Steered()
    with broker.reader(TOPIC) as reader:
        async with MqttSink(broker.url, commands=service) as sink:
            await until(says(reader, "None"))
            await sink.send(service.known(yes(1)))
            await until(says(reader, "ON"))
            service.answers.clear()
            await until(says(reader, "None"))
            await sink.send(service.known(yes(2)))
            await until(says(reader, "ON"))
    assert reader.payloads(TOPIC) == ["None", "ON", "None", "ON"]


async def test_a_new_start_takes_back_the_state_of_the_one_before(broker: Mosquitto) -> None:
    service = Steered()
    async with MqttSink(broker.url, commands=service) as sink:
        await sink.send(service.known(yes()))
    with broker.reader(TOPIC) as reader:
        await until(says(reader, "ON"))
        async with MqttSink(broker.url, commands=Steered()):
            await until(says(reader, "None"))


async def test_an_answer_that_waited_says_nothing_of_now(broker: Mosquitto) -> None:
    """It may be of an earlier run, or of a query that was switched off meanwhile."""
    service = Steered()
    with broker.reader("test/cam/query/person/#") as reader:
        async with MqttSink(broker.url, commands=service) as sink:
            await until(says(reader, "None"))
            await sink.send(yes(1))
            await sink.send(service.known(yes(3, answered_at=2000.0)))
            await sink.send(yes(2, answered_at=1000.0))
            await until(lambda: len(reader.payloads("test/cam/query/person/answer")) == 3)
            await until(says(reader, "ON"))
    assert reader.payloads(TOPIC) == ["None", "ON"]


async def test_a_sink_that_joins_a_running_service_says_what_is_known(broker: Mosquitto) -> None:
    service = Steered()
    service.known(yes())
    with broker.reader(TOPIC) as reader:
        async with MqttSink(broker.url, commands=service):
            await until(says(reader, "ON"))
    assert reader.payloads(TOPIC) == ["ON"]
