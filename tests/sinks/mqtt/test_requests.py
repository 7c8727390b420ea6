"""Asking and steering over MQTT with mosquitto's own clients: 3.1.1 and 5, TLS and certificates, and any garbage."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import aiomqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from stream_sttm import metrics
from stream_sttm.errors import ConfigError, SinkError, SinkRefused
from stream_sttm.sinks import open_sink
from stream_sttm.sinks.mqtt.requests import CALLER
from stream_sttm.sinks.mqtt.sink import MqttSink
from stream_sttm.storage.outbox import OutboxTable
from stream_sttm.types import AnswerType, StreamState
from tests.support.answers import make_answer, until
from tests.support.mosquitto import PASSWORD, USER, MakeBroker, Mosquitto, Reader
from tests.support.scripted_service import Steered
from tests.workers.test_outbox import ids, running
from workers.durable_queue import Limits

pytestmark = pytest.mark.server
BOTH = pytest.mark.parametrize("protocol", ["311", "5"])


async def publish(broker: Mosquitto, topic: str, payload: bytes | str, *options: str) -> bool:
    """Publish as an outside client; the payload goes over stdin, so that it may be anything. Whether it went."""
    body = payload if isinstance(payload, bytes) else payload.encode()
    command = ["mosquitto_pub", "-h", "127.0.0.1", "-p", str(broker.port), "-q", "1"]
    process = await asyncio.create_subprocess_exec(
        *command, "-s" if body else "-n", "-t", topic, *options, stdin=asyncio.subprocess.PIPE
    )
    await process.communicate(body)
    return process.returncode == 0


def outcome(sink: MqttSink, word: str) -> float:
    return float(metrics.MQTT_REQUESTS.labels(sink.name, word)._value.get())


def is_connected(sink: MqttSink) -> bool:
    return bool(metrics.MQTT_CONNECTED.labels(sink.name)._value.get())


@asynccontextmanager
async def listening(url: str, service: Steered) -> AsyncIterator[MqttSink]:
    async with MqttSink(url, commands=service) as sink:
        await until(lambda: is_connected(sink))
        yield sink


def errors(reader: Reader, topic: str) -> list[str]:
    told = [json.loads(payload)["error"] for payload in reader.payloads(topic)]
    assert not [line for line in told if "\n" in line]
    return told


# --- asking


@BOTH
async def test_a_question_in_plain_text_or_json_reaches_the_service(
    broker: Mosquitto, protocol: str
) -> None:
    service = Steered()
    async with listening(f"{broker.url}?protocol={protocol}", service):
        await publish(broker, "test/cam/ask", "What is there? Äh…")
        asked = {
            "question": "Which?", "type": "choice", "choices": ["a", "b"], "id": "my-1",
            "max_new_tokens": 3, "timeout": 2.5,
            "window_s": 60, "fresh_frames": 2, "recall": "auto", "priority": -7,
        }  # fmt: skip
        await publish(broker, "test/door-2/ask", json.dumps(asked))
        await until(lambda: len(service.asked) == 2)
    by_stream = {question.stream: question for question in service.asked}
    plain, full = by_stream["cam"], by_stream["door-2"]
    assert (plain.text, plain.query, plain.form.type) == (
        "What is there? Äh…",
        None,
        AnswerType.TEXT,
    )
    assert (full.id, full.text, full.max_new_tokens, full.timeout) == ("my-1", "Which?", 3, 2.5)
    assert (full.form.type, full.form.choices) == (AnswerType.CHOICE, ("a", "b"))
    assert (full.look, full.recall, full.priority) == ((60, 2), "auto", -7)


async def test_an_answer_comes_on_the_response_topic_with_its_correlation_data(
    broker: Mosquitto,
) -> None:
    service = Steered()
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.ResponseTopic, properties.CorrelationData = "me/replies", b"\x00\x01 nr 7"
    version = aiomqtt.ProtocolVersion.V5
    async with (
        listening(f"{broker.url}?protocol=5", service),
        aiomqtt.Client("127.0.0.1", broker.port, protocol=version) as client,
    ):
        await client.subscribe("me/#", qos=1)
        for payload in ("What?", "{}"):
            await client.publish("test/cam/ask", payload, qos=1, properties=properties)
        replies = []
        async with asyncio.timeout(20):
            async for message in client.messages:
                assert message.properties is not None
                assert message.properties.CorrelationData == b"\x00\x01 nr 7"  # type: ignore[attr-defined]
                replies.append(json.loads(bytes(message.payload)))  # type: ignore[arg-type]
                if len(replies) == 2:
                    break
    (answer,) = [reply for reply in replies if "answer" in reply]
    (fault,) = [reply for reply in replies if "error" in reply]
    assert (answer["answer"], answer["id"]) == ("two", service.asked[0].id)
    assert fault == {"error": "question: Field required"}


@pytest.mark.parametrize(
    "topic", ["test/cam/enabled/set", "test", "ha/status", "$SYS/x", "a/+/b", "#", "x" * 2000]
)
async def test_no_reply_goes_where_nobody_but_the_service_may_write(
    broker: Mosquitto, topic: str
) -> None:
    service = Steered()
    options = ("-V", "5", "-D", "publish", "response-topic", topic)
    with broker.reader("#") as reader:
        async with listening(f"{broker.url}?protocol=5&discovery=ha", service) as sink:
            if not await publish(broker, "test/cam/ask", "{}", *options):
                return  # mosquitto's own client does not let it through
            await until(lambda: bool(errors(reader, "test/cam/ask/error")))
            assert outcome(sink, "refused") == 1
            assert topic == "test" or not [
                m for m in reader.messages() if m["topic"] == topic and "error" in m["payload"]
            ]


GARBAGE: list[tuple[bytes, str]] = [
    (b"", "question: is empty"),
    (b" \n\t", "question: is empty"),
    (b"\xff\xfe\x00", "is no valid UTF-8"),
    (b'{"question": "\xc3\x28"}', "is no valid UTF-8"),
    (b'{"question": ', "is not JSON"),
    (b'{"question": 7}', "question: Input should be a valid string"),
    (b'{"question": ""}', "question: is empty"),
    (b'{"question": "\\ud800?"}', "question: is no valid Unicode; send UTF-8"),
    (b'{"question": "x", "stream": "other"}', "stream: Extra inputs are not permitted"),
    (b'{"question": "x", "id": "a/b"}', "id: String should match pattern"),
    (b'{"question": "x", "type": "choice"}', "needs two or more"),
    (b'{"question": "x", "timeout": 1e999}', "timeout"),
    (b'{"question": "x", "max_new_tokens": 9999999}', "max_new_tokens"),
    (b'{"a": ' * 20_000, "bytes; at most"),
    (b'{"a": ' * 5_000, "is not JSON: recursion limit exceeded"),
    (b"x" * 1_000_000, "has 1000000 bytes; at most 65536 are read"),
    (b"x" * 3000, "question: has 3000 characters; at most 2000 are taken"),
]


@BOTH
async def test_garbage_is_refused_in_one_line_and_the_next_question_is_answered(
    broker: Mosquitto, protocol: str
) -> None:
    service = Steered()
    topic = "test/cam/ask/error"
    with broker.reader(topic) as reader:
        async with listening(f"{broker.url}?protocol={protocol}", service) as sink:
            for number, (payload, words) in enumerate(GARBAGE, start=1):
                await publish(broker, "test/cam/ask", payload)
                await until(lambda number=number: reader.count() == number)
                assert words in errors(reader, topic)[-1], payload[:40]
            await publish(broker, "test/cam/ask", "And now?")
            await until(lambda: len(service.asked) == 1)
            assert outcome(sink, "refused") >= len(GARBAGE)


async def test_garbage_on_every_topic_harms_nobody(broker: Mosquitto) -> None:
    service = Steered()
    topics = [
        "cam/ask", "nobody/ask", "a b/ask", "ä/ask", "cam/enabled/set", "nobody/enabled/set",
        "cam/query/person/enabled/set", "cam/query/person/trigger", "../query/x/trigger", "onConnect",
    ]  # fmt: skip
    everywhere = [f"test/{topic}" for topic in topics]
    everywhere += ["ha/status", "ha/device/test_cam/config", "ha/device/x/config"]
    bodies = [b"\xff\x00", b"[" * 50_000, b'{"o": {}}', b"ONLINE", b"x" * 300_000]
    with broker.reader("#") as reader:
        async with listening(f"{broker.url}?discovery=ha", service) as sink:
            for topic in everywhere:
                for body in bodies:
                    await publish(broker, topic, body, *(["-r"] if body == bodies[0] else []))
            await publish(broker, "test/cam/enabled/set", "off")
            await until(lambda: service.states["cam"] is StreamState.DISABLED)
            await sink.send(make_answer(number=99))
            assert is_connected(sink)
            await until(lambda: bool(errors(reader, "test/nobody/ask/error")))
            assert "must be ON or OFF" in errors(reader, "test/cam/enabled/error")
    # and when the broker has kept it
    async with listening(f"{broker.url}?discovery=ha", Steered()) as sink:
        await sink.send(make_answer(number=100))


async def test_an_id_is_answered_once(broker: Mosquitto) -> None:
    service = Steered()
    with broker.reader("test/cam/ask/error") as reader:
        async with listening(broker.url, service):
            for _ in range(2):
                await publish(broker, "test/cam/ask", '{"question": "What?", "id": "one"}')
            await until(lambda: reader.count() == 1)
        (told,) = [json.loads(each["payload"]) for each in reader.messages()]
    assert told == {"error": "id: was used before; give each question one of its own", "id": "one"}
    assert len(service.asked) == 1


async def test_a_flood_of_questions_is_bounded_and_refused(broker: Mosquitto) -> None:
    service = Steered()
    service.gate.clear()
    topic = "test/cam/ask/error"
    with broker.reader(topic) as reader:
        async with (
            listening(broker.url, service) as sink,
            aiomqtt.Client("127.0.0.1", broker.port) as client,
        ):
            async with asyncio.TaskGroup() as group:
                for number in range(500):
                    group.create_task(client.publish("test/cam/ask", f"What? {number}", qos=1))
            await until(lambda: outcome(sink, "refused") + outcome(sink, "dropped") == 500 - 32)
            await until(lambda: bool(errors(reader, topic)))
            assert "too much is being asked at once" in errors(reader, topic)[0]
            assert len(service.asked) == 32
            await sink.send(make_answer())  # answers still flow
            service.gate.set()
            await until(lambda: outcome(sink, "done") == 32)


async def test_what_the_broker_kept_is_not_done_again(broker: Mosquitto) -> None:
    await publish(broker, "test/cam/ask", "Who kept this?", "-r")
    await publish(broker, "test/cam/enabled/set", "OFF", "-r")
    service = Steered()
    async with listening(broker.url, service):
        await publish(broker, "test/cam/ask", "What?")
        await until(lambda: bool(service.asked))
    assert [question.text for question in service.asked] == ["What?"]
    assert service.states["cam"] is StreamState.ONLINE


# --- steering


@pytest.mark.parametrize(
    ("commands", "asked", "commanded"), [("none", 0, 0), ("ask", 1, 0), ("all", 1, 1)]
)
async def test_only_what_the_url_allows_is_taken_from_the_broker(
    broker: Mosquitto, commands: str, asked: int, commanded: int
) -> None:
    service = Steered()
    url = f"{broker.url}?commands={commands}"
    with broker.reader("test/available") as reader:
        async with listening(url, service):
            for topic, payload in (
                ("test/cam/enabled/set", "OFF"),
                ("test/cam/query/person/enabled/set", "OFF"),
                ("test/cam/query/person/trigger", "now"),
                ("test/cam/ask", "Who?"),
            ):
                await publish(broker, topic, payload)
            await publish(broker, "test/available", "offline")  # heard, all before it was too
            told = ["online", "offline", "online"]
            await until(lambda: reader.payloads("test/available") == told)
    assert len(service.asked) == asked
    assert len(service.triggered) == commanded
    assert (service.states["cam"] is StreamState.DISABLED) == bool(commanded)
    assert (("cam", "person") in service.paused) == bool(commanded)


@pytest.mark.parametrize(
    ("commands", "own"),
    [
        ("none", []),
        ("ask", ["test/onConnect", "test/+/ask"]),
        (
            "all",
            [
                "test/onConnect",
                "test/+/ask",
                "test/+/enabled/set",
                "test/+/query/+/enabled/set",
                "test/+/query/+/trigger",
            ],
        ),
    ],
)
def test_nothing_is_subscribed_to_that_the_url_does_not_allow(
    commands: str, own: list[str]
) -> None:
    sink = MqttSink(f"mqtt://broker/test?commands={commands}", commands=Steered())
    assert sink._subscriptions() == ["test/available", *own]


async def test_switches_and_triggers_are_done_and_their_states_told(broker: Mosquitto) -> None:
    service = Steered()
    with broker.reader() as reader:
        async with listening(broker.url, service):
            await until(lambda: reader.payloads("test/cam/enabled/state") == ["ON"])
            await publish(broker, "test/cam/enabled/set", "OFF")
            await until(lambda: reader.payloads("test/cam/enabled/state") == ["ON", "OFF"])
            await publish(broker, "test/cam/query/person/enabled/set", " off\n")
            topic = "test/cam/query/person/enabled/state"
            await until(lambda: reader.payloads(topic) == ["ON", "OFF"])
            await publish(broker, "test/cam/query/person/trigger", "")
            await until(lambda: service.triggered == [("person", "cam")])
            await publish(broker, "test/nobody/enabled/set", "ON")
            await until(lambda: bool(errors(reader, "test/nobody/enabled/error")))
            assert "no stream 'nobody'" in errors(reader, "test/nobody/enabled/error")[0]


async def test_what_frigate_tells_is_heard_and_never_replied_to(broker: Mosquitto) -> None:
    service = Steered()
    with broker.reader("#") as reader:
        async with listening(f"{broker.url}?frigate=cams/frigate", service) as sink:
            await publish(broker, "cams/frigate/events", '{"type": "new"}')
            await publish(broker, "cams/frigate/reviews", b"\xff garbage")
            await publish(broker, "cams/frigate/stats", "{}")
            await until(lambda: len(service.sightings) == 2)
            assert outcome(sink, "refused") == 0
        assert service.sightings == [b'{"type": "new"}', b"\xff garbage"]
        assert not [m for m in reader.messages() if m["topic"].endswith("/error")]


async def test_whoever_connects_may_have_all_states_told_anew(broker: Mosquitto) -> None:
    service = Steered()
    with broker.reader() as reader:
        async with listening(broker.url, service) as sink:
            await sink.send(service.known(make_answer("yes", query="scene")))
            before = service.resent
            await publish(broker, "test/onConnect", "")
            await until(lambda: reader.payloads("test/cam/query/scene/state")[-2:] == ["yes"] * 2)
            await until(lambda: service.resent > before)


# --- access


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """An authority, a server certificate for 127.0.0.1 and a client certificate, each with its key."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=tmp_path)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1")
    for name in ("ca", "other"):
        files = ("-keyout", f"{name}.key", "-out", f"{name}.pem")
        openssl("req", "-x509", *curve, *files, "-subj", f"/CN={name}")
    for name, usage in (
        ("server", "subjectAltName=IP:127.0.0.1"),
        ("client", "keyUsage=digitalSignature"),
    ):
        openssl(
            "req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        (tmp_path / f"{name}.ext").write_text(usage + "\n")
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "1", "-extfile", f"{name}.ext", "-out", f"{name}.pem",
        )  # fmt: skip
    openssl("ec", "-in", "client.key", "-aes256", "-passout", "pass:x", "-out", "locked.key")
    for file in tmp_path.iterdir():
        os.chmod(file, 0o644)
    return tmp_path


def tls(folder: Path) -> str:
    return (
        f"cafile {folder}/ca.pem\ncertfile {folder}/server.pem\nkeyfile {folder}/server.key\n"
        "require_certificate true"
    )


@BOTH
async def test_tls_with_a_client_certificate_and_a_password(
    make_broker: MakeBroker, certificates: Path, protocol: str
) -> None:
    broker = make_broker(with_password=True, extra=tls(certificates))
    broker.start()
    files = "&".join(
        f"{name}={quote(str(certificates / file))}"
        for name, file in {"ca": "ca.pem", "cert": "client.pem", "key": "client.key"}.items()
    )
    login = f"{USER}:{quote(PASSWORD, safe='')}"
    url = f"mqtts://{login}@127.0.0.1:{broker.port}/test?{files}&protocol={protocol}"
    async with open_sink(url) as sink:
        await sink.send(make_answer())
        assert PASSWORD not in repr(sink)
        assert str(certificates) not in repr(sink)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # paho leaves a refused TLS socket to the gc
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_tls_without_the_client_certificate_is_refused_in_one_line(
    make_broker: MakeBroker, certificates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker = make_broker(extra=tls(certificates))
    broker.start()
    url = f"mqtts://u:s3cret@127.0.0.1:{broker.port}/test?ca={certificates}/ca.pem"
    async with MqttSink(url, timeout=0.5) as sink:
        with pytest.raises(SinkError, match="not connected"):
            await sink.send(make_answer())
        await until(lambda: "can't connect" in caplog.text or "connection lost" in caplog.text)
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("cert=client.pem&key=other.key", "can't use cert=.*: the key is not this certificate's"),
        ("cert=client.pem&key=locked.key", "not PEM, or the key is encrypted"),
        ("cert=client.ext", "not PEM, or the key is encrypted"),
        ("cert=client.pem&key=none.key", "No such file"),
        ("ca=client.ext", "can't read ca=.*: not PEM"),
    ],
)
def test_certificates_that_can_not_be_used_are_one_line(
    certificates: Path, options: str, words: str
) -> None:
    there = "&".join(
        f"{name}={certificates}/{file}" for name, file in (o.split("=") for o in options.split("&"))
    )
    with pytest.raises(ConfigError, match=words) as caught:
        open_sink(f"mqtts://u:s3cret@broker?{there}")
    assert "s3cret" not in str(caught.value)


@BOTH
async def test_a_wrong_password_is_told_whatever_the_protocol(
    make_broker: MakeBroker, caplog: pytest.LogCaptureFixture, protocol: str
) -> None:
    broker = make_broker(with_password=True)
    broker.start()
    url = f"mqtt://{USER}:wrong-secret@127.0.0.1:{broker.port}?protocol={protocol}"
    async with MqttSink(url, timeout=0.1):
        await until(lambda: "user or password refused; check the sink's URL" in caplog.text)
    assert "wrong-secret" not in caplog.text


async def test_an_mqtt_5_broker_that_refuses_an_answer_is_believed(make_broker: MakeBroker) -> None:
    rules = make_broker().folder / "acl"
    rules.write_text("topic write test/cam/#\ntopic write test/available\n")
    broker = make_broker(extra=f"acl_file {rules}")
    broker.start()
    async with MqttSink(f"{broker.url}?protocol=5") as sink:
        told = await sink.send_all([make_answer(number=n, stream=s) for n, s in enumerate("aca")])
        assert [type(each) for each in told[::2]] == [SinkRefused, SinkRefused]
        with pytest.raises(SinkRefused, match="refuses what is published: Not authorized"):
            await sink.send(make_answer(stream="door"))
        await sink.send(make_answer(stream="cam"))


async def test_an_answer_that_the_broker_hangs_up_on_holds_up_no_other(
    make_broker: MakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """mosquitto answers what is above its limit with a code that is none; the client library hangs up."""
    broker = make_broker(extra="message_size_limit 4000")
    broker.start()
    topic = "test/cam/query/look/answer"
    sink = MqttSink(f"{broker.url}?protocol=5")
    with broker.reader(topic) as reader:
        async with running(sink, None) as box:
            for number in range(30):
                box.put(make_answer("x" * 5000 if number == 9 else "yes", number=number))
            await until(lambda: box.level.emptied.is_set(), within=60)
            await until(lambda: reader.count() >= 29)
    received = [json.loads(payload)["id"] for payload in reader.payloads(topic)]
    assert list(dict.fromkeys(received)) == ids([*range(9), *range(10, 30)])
    assert "hangs up on it" in caplog.text


async def test_a_broker_out_of_memory_loses_nothing(
    make_broker: MakeBroker, tmp_path: Path
) -> None:
    """What it can't take it does not acknowledge, so it waits and goes once there is room."""
    broker = make_broker(extra="memory_limit 400000\nmax_queued_messages 0\nmax_queued_bytes 0")
    broker.start()
    topic = "test/cam/query/look/answer"
    with broker.reader(topic, "-c", "-i", "away"):
        pass  # and is away from now on, so the broker has to keep everything for it
    sink = MqttSink(broker.url, timeout=1)
    with OutboxTable(tmp_path / "outbox.db") as backlog:
        async with running(sink, backlog, Limits(first_pause=0.05, longest_pause=0.2)) as box:
            for number in range(500):
                box.put(make_answer("x" * 500, number=number))
            log = broker.folder / "mosquitto.log"
            await until(lambda: "due to out of memory" in log.read_text())
            await until(lambda: backlog.count(sink.name)[0] > 0)
            broker.stop()
            config = broker.folder / "mosquitto.conf"
            config.write_text(config.read_text().replace("memory_limit 400000", ""))
            broker.start()
            with broker.reader(topic, "-c", "-i", "away") as reader:
                await until(lambda: box.level.emptied.is_set(), within=60)
                await until(lambda: "q499" in reader.payloads(topic)[-1:][0], within=40)
                received = [json.loads(payload)["id"] for payload in reader.payloads(topic)]
    assert list(dict.fromkeys(received)) == ids(range(500))


async def test_priority_above_zero_is_refused_in_a_line(broker: Mosquitto) -> None:
    service = Steered()
    async with listening(broker.url, service):
        for priority in (1, 100, 0):
            asked = {"question": "Who?", "id": f"p{priority}", "priority": priority}
            await publish(broker, "test/cam/ask", json.dumps(asked))
        await until(lambda: bool(service.asked))
    assert [(question.id, question.caller) for question in service.asked] == [("p0", CALLER)]
