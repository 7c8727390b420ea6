"""The MQTT sink against a real mosquitto, read from outside by mosquitto_sub."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from stream_sttm import metrics
from stream_sttm.errors import ConfigError, SinkError, SinkRefused
from stream_sttm.sinks import open_sink
from stream_sttm.sinks.mqtt import connection
from stream_sttm.sinks.mqtt.packet_limit import MAX_PAYLOAD_BYTES
from stream_sttm.sinks.mqtt.sink import MqttSink
from stream_sttm.types import StreamState
from tests.support.answers import make_answer, make_status, until
from tests.support.mosquitto import PASSWORD, USER, MakeBroker, Mosquitto, free_port

pytestmark = pytest.mark.server


def is_connected(sink: MqttSink) -> bool:
    return bool(metrics.MQTT_CONNECTED.labels(sink.name)._value.get())


async def test_answer_arrives_as_json_and_its_state_as_retained_text(broker: Mosquitto) -> None:
    with broker.reader() as reader:
        async with MqttSink(broker.url) as sink:
            answer = make_answer("yes,\n a red car", query="look")
            await sink.send(answer)
            await until(lambda: bool(reader.payloads("test/cam/query/look/answer")))
        (published,) = reader.payloads("test/cam/query/look/answer")
    body = json.loads(published)
    assert body["event_to_answer_ms"] >= 500
    assert body == answer.as_dict(published_at=0) | {
        "event_to_answer_ms": body["event_to_answer_ms"]
    }
    assert {m["qos"] for m in reader.messages()} == {1}
    with broker.reader() as late:
        await until(lambda: len(late.messages()) == 3)
        assert late.payloads("test/cam/query/look/state") == ["yes, a red car"]
        assert late.payloads("test/cam/query/look/attributes") == [published]
        assert late.payloads("test/available") == ["stopped"]


async def test_answer_asked_on_demand_goes_to_its_own_topic(broker: Mosquitto) -> None:
    with broker.reader() as reader:
        async with MqttSink(broker.url) as sink:
            await sink.send(make_answer("two", number=5, query=None))
            await until(lambda: bool(reader.payloads("test/cam/ask/q5/answer")))
        assert {m["topic"] for m in reader.messages()} == {
            "test/available",
            "test/cam/ask/q5/answer",
        }


async def test_state_is_cut_to_what_an_entity_takes(broker: Mosquitto) -> None:
    with broker.reader() as reader:
        async with MqttSink(broker.url) as sink:
            await sink.send(make_answer("ä" * 1000))
            await until(lambda: bool(reader.payloads("test/cam/query/look/state")))
        assert reader.payloads("test/cam/query/look/state") == ["ä" * 254 + "…"]


async def test_status_is_a_retained_word_with_details_beside_it(broker: Mosquitto) -> None:
    async with MqttSink(broker.url) as sink:
        status = make_status(state=StreamState.STALLED, reason="no frame for 5 s")
        await sink.report(status)
    with broker.reader() as late:
        await until(lambda: len(late.messages()) == 3)
        assert late.payloads("test/cam/status") == ["stalled"]
        (attributes,) = late.payloads("test/cam/status/attributes")
    assert json.loads(attributes) == status.as_dict()


async def test_last_will_tells_of_a_process_that_died(broker: Mosquitto) -> None:
    program = f"""
import asyncio
from stream_sttm.sinks.mqtt.sink import MqttSink
async def main():
    async with MqttSink({broker.url!r}):
        await asyncio.Event().wait()
asyncio.run(main())
"""
    with broker.reader() as reader:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
        await until(lambda: reader.payloads("test/available") == ["online"])
        process.kill()
        await process.wait()
        await until(lambda: reader.payloads("test/available") == ["online", "offline"])


async def test_broker_down_at_start_is_waited_for(make_broker: MakeBroker) -> None:
    broker = make_broker()
    async with MqttSink(broker.url, timeout=20) as sink, asyncio.TaskGroup() as group:
        sending = group.create_task(sink.send(make_answer()))
        await asyncio.sleep(0)
        assert not sending.done()
        broker.start()
    with broker.reader() as late:
        await until(lambda: late.payloads("test/cam/query/look/state") == ["yes"])


async def test_reconnect_tells_all_retained_topics_anew(broker: Mosquitto) -> None:
    async with MqttSink(broker.url) as sink:
        await sink.report(make_status("cam"))
        await sink.report(make_status("door", StreamState.CONNECTING))
        await sink.send(make_answer("yes"))
        broker.stop(signal.SIGKILL)
        await until(lambda: not is_connected(sink))
        (broker.folder / "mosquitto.db").unlink(missing_ok=True)  # the broker has forgotten all
        broker.start()
        await until(lambda: is_connected(sink))
        with broker.reader() as late:
            await until(lambda: len(late.messages()) == 7)
            assert {
                m["topic"]: m["payload"] for m in late.messages() if m["payload"][0] != "{"
            } == {
                "test/available": "online",
                "test/cam/status": "online",
                "test/door/status": "connecting",
                "test/cam/query/look/state": "yes",
            }


async def test_broker_that_dies_fails_what_is_being_sent_at_once(broker: Mosquitto) -> None:
    async def send(sink: MqttSink) -> str:
        with pytest.raises(SinkError) as caught:
            await sink.send(make_answer())
        return str(caught.value)

    async with MqttSink(broker.url, timeout=60) as sink, asyncio.timeout(30):
        await sink.report(make_status())
        broker.freeze()
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(send(sink))
            await asyncio.sleep(0.05)
            assert not sending.done()
            broker.stop(signal.SIGKILL)
        assert "mqtt broker" in sending.result()


async def test_broker_that_acknowledges_nothing_is_left_and_found_again(broker: Mosquitto) -> None:
    async with MqttSink(broker.url, timeout=0.3) as sink:
        await sink.report(make_status())
        broker.freeze()
        with pytest.raises(SinkError, match="no acknowledgement"):
            await sink.send(make_answer())
        await until(lambda: not is_connected(sink))
        with pytest.raises(SinkError, match="not connected"):
            await sink.send(make_answer())
        broker.thaw()
        await until(lambda: is_connected(sink))
        await sink.send(make_answer())


async def test_attempts_that_a_silent_broker_let_hang_are_gone_when_it_wakes(
    broker: Mosquitto, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each would hold a socket, and a last will that says `offline` of a service that runs."""
    monkeypatch.setattr(connection, "_CONNACK", 0.3)
    caplog.set_level(logging.INFO)
    with broker.reader() as reader:
        async with MqttSink(broker.url, timeout=0.3) as sink:
            await sink.send(make_answer())
            files, tasks = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())
            broker.freeze()
            with pytest.raises(SinkError):
                await sink.send(make_answer())
            await until(lambda: "no answer" in caplog.text)
            broker.thaw()
            await until(lambda: caplog.text.count(": connected") == 2)
            await until(lambda: len(asyncio.all_tasks()) == tasks)
            assert len(os.listdir("/proc/self/fd")) == files
        await until(lambda: reader.payloads("test/available")[-1] == "stopped")
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_user_and_password_of_any_characters_are_taken_from_the_url(
    make_broker: MakeBroker,
) -> None:
    broker = make_broker(with_password=True)
    broker.start()
    url = f"mqtt://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{broker.port}"
    async with open_sink(url) as sink:
        await sink.send(make_answer())
        assert sink.name == f"127.0.0.1:{broker.port}"
        assert PASSWORD not in repr(sink)


async def test_wrong_password_is_one_line_without_the_password(
    make_broker: MakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    broker = make_broker(with_password=True)
    broker.start()
    url = f"mqtt://{USER}:wrong-secret@127.0.0.1:{broker.port}"
    attempts = "mosquitto.log"
    async with MqttSink(url, timeout=0.1) as sink:
        log = broker.folder / attempts
        await until(lambda: log.read_text().count("not authorised") >= 2)
        with pytest.raises(SinkError) as caught:
            await sink.send(make_answer())
    lines = [r.getMessage() for r in caplog.records if r.levelno > logging.DEBUG]
    assert lines == [
        f"mqtt broker 127.0.0.1:{broker.port}: user or password refused; check the sink's URL;"
        " trying on"
    ]
    assert "wrong-secret" not in caplog.text + str(caught.value)


async def test_each_state_of_the_connection_is_logged_once(
    make_broker: MakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    broker = make_broker()
    name = f"mqtt broker 127.0.0.1:{broker.port}"
    async with MqttSink(broker.url) as sink:
        await until(lambda: caplog.text.count(f"{name}: connecting") >= 3)
        broker.start()
        await until(lambda: is_connected(sink))
    assert [r.getMessage() for r in caplog.records if r.levelno > logging.DEBUG] == [
        f"{name}: can't connect: [Errno 111] Connection refused; trying on",
        f"{name}: connected",
    ]


async def test_leaving_is_prompt_with_no_broker_and_with_a_silent_one(broker: Mosquitto) -> None:
    async with asyncio.timeout(20):
        async with MqttSink(f"mqtt://127.0.0.1:{free_port()}"):
            await asyncio.sleep(0)
        broker.freeze()
        async with MqttSink(broker.url):
            await asyncio.sleep(0.05)


async def test_connecting_over_and_over_leaves_no_file_open_and_no_task(
    make_broker: MakeBroker,
) -> None:
    refusing = make_broker(with_password=True)
    refusing.start()

    async def use(url: str) -> None:
        async with MqttSink(url, timeout=0.05) as sink:
            with pytest.raises(SinkError):
                await sink.send(make_answer())

    urls = [refusing.url, f"mqtt://127.0.0.1:{free_port()}"]
    for url in urls:
        await use(url)
    gc.collect()
    files, tasks = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())
    for _ in range(5):
        for url in urls:
            await use(url)
    gc.collect()
    await until(lambda: len(os.listdir("/proc/self/fd")) <= files)
    await until(lambda: len(asyncio.all_tasks()) <= tasks)


async def test_answer_too_large_for_a_broker_is_refused_for_good(broker: Mosquitto) -> None:
    async with MqttSink(broker.url) as sink:
        with pytest.raises(SinkRefused, match=f"at most {MAX_PAYLOAD_BYTES} are sent"):
            await sink.send(make_answer("x" * MAX_PAYLOAD_BYTES, query=None))
        await sink.send(make_answer())


async def test_two_sinks_on_one_broker_do_not_push_each_other_out(broker: Mosquitto) -> None:
    other = f"mqtt://127.0.0.1:{broker.port}/other/deep"
    with broker.reader("#") as reader:
        async with MqttSink(broker.url) as one, MqttSink(other) as two:
            for number in range(3):
                await one.send(make_answer(number=number))
                await two.send(make_answer(number=number))
            await until(lambda: len(reader.payloads("other/deep/cam/query/look/answer")) == 3)
        assert len(reader.payloads("test/cam/query/look/answer")) == 3
        assert reader.payloads("test/available")[0] == "online"


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1"
    command += f" -keyout {key} -out {certificate} -subj /CN=x -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(command.split(), check=True, capture_output=True)
    return certificate, key


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # paho leaves a refused TLS socket to the gc
async def test_tls_is_checked_against_the_named_authority(
    make_broker: MakeBroker, certificate: tuple[Path, Path]
) -> None:
    broker = make_broker(extra=f"certfile {certificate[0]}\nkeyfile {certificate[1]}")
    broker.start()
    url = f"mqtts://127.0.0.1:{broker.port}/test"
    async with open_sink(f"{url}?ca={certificate[0]}") as sink:
        await sink.send(make_answer())
    async with MqttSink(url, timeout=0.3) as stranger:
        with pytest.raises(SinkError, match="not connected"):
            await stranger.send(make_answer())
    del stranger
    gc.collect()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mqtt:///prefix", "names no host"),
        ("mqtt://host/a/+/b", "not allowed"),
        ("mqtt://host/%23", "not allowed"),
        ("mqtt://host/a//b", "not allowed"),
        ("mqtt://host/" + "x" * 300, "at most 200"),
        ("mqtt://u:geheim@host/a?retain=1", "has no option 'retain'"),
        ("mqtt://u:geheim@host/a?geheim@x=1", "has no option '***'"),
        ("mqtt://u:geheim@host/a?protocol=", "protocol: has no value"),
        ("mqtt://u:geheim@host/a?protocol=4", "is 311 (MQTT 3.1.1) or 5"),
        ("mqtt://u:geheim@host/a?protocol=5&protocol=311", "an option twice"),
        ("mqtt://u:geheim@host/a?discovery=a/%2B", "not allowed"),
        ("mqtt://u:geheim@host/a?commands=some", "commands: is none, ask or all"),
        ("mqtt://u:geheim@host/a?node=a/b", "node: takes letters"),
        ("mqtt://u:geheim@host/a?snapshots=often", "snapshots: is a number of seconds"),
        ("mqtt://u:geheim@host/a?ca=/tmp/x", "ca: belongs to mqtts://"),
        ("mqtts://u:geheim@host/a?key=/tmp/x", "key: belongs to cert=FILE"),
        ("mqtts://u:geheim@host/a?cert=/no/such", "can't use cert=/no/such: No such file"),
        ("mqtts://u:geheim@host/a?ca=/no/such/file", "can't read ca=/no/such/file"),
    ],
)
def test_url_that_can_not_work_is_refused_in_one_line(url: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_sink(url)
    assert words in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_prefix_and_ports_have_defaults() -> None:
    plain, secure = MqttSink("mqtt://broker"), MqttSink("mqtts://broker/")
    assert (plain.name, secure.name) == ("broker:1883", "broker:8883")
    assert plain._topics.prefix == secure._topics.prefix == "stream_sttm"
    assert MqttSink("mqtt://broker/home/cams/").name == "broker:1883/home/cams"
