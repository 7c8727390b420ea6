"""What Home Assistant is told follows its own rules, is told anew when it must be, and taken back when it is gone.

The rules are those of https://www.home-assistant.io/integrations/mqtt/ and the pages of its MQTT entities.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import jinja2
import pytest

from stream_sttm.config.queries import QuerySettings
from stream_sttm.sinks.mqtt import topics
from stream_sttm.sinks.mqtt.homeassistant import Announcements, devices
from stream_sttm.sinks.mqtt.sink import MqttSink
from stream_sttm.sinks.mqtt.url import Endpoint, parse
from stream_sttm.types import AnswerType, EventKind, Form, StreamState
from tests.support.answers import make_answer, make_event, make_status, until
from tests.support.mosquitto import Mosquitto, Reader
from tests.support.scripted_service import Steered

URL = "mqtt://broker/home/cams?discovery=homeassistant&snapshots=10"

# --- Home Assistant's rules

ABBREVIATIONS = {
    "avty": "availability", "avty_mode": "availability_mode", "cmd_t": "command_topic", "cmps": "components",
    "cont_type": "content_type", "dev": "device", "dev_cla": "device_class", "ent_cat": "entity_category",
    "evt_typ": "event_types", "exp_aft": "expire_after", "img_t": "image_topic",
    "json_attr_t": "json_attributes_topic", "o": "origin", "ops": "options", "p": "platform", "pl_off": "payload_off",
    "pl_on": "payload_on", "stat_cla": "state_class", "stat_t": "state_topic", "t": "topic", "uniq_id": "unique_id",
    "unit_of_meas": "unit_of_measurement", "val_tpl": "value_template",
}  # fmt: skip
OF_DEVICE = {"ids": "identifiers", "mf": "manufacturer", "mdl": "model", "sw": "sw_version"}
OF_ORIGIN = {"sw": "sw_version"}
ROOT = {"device", "origin", "components", "availability", "availability_mode", "qos", "encoding"}
ENTITY = {
    "platform", "unique_id", "name", "availability", "availability_mode", "entity_category", "icon", "qos",
    "json_attributes_topic", "enabled_by_default",
}  # fmt: skip
READ = {"state_topic", "value_template", "expire_after", "device_class"}
PLATFORMS: dict[str, tuple[set[str], set[str]]] = {  # what each must have, and what it may have
    "binary_sensor": ({"state_topic"}, READ | {"payload_on", "payload_off"}),
    "sensor": ({"state_topic"}, READ | {"state_class", "unit_of_measurement", "options"}),
    "switch": ({"command_topic"}, {"command_topic", "state_topic", "payload_on", "payload_off"}),
    "event": ({"state_topic", "event_types"}, {"state_topic", "event_types", "device_class"}),
    "image": ({"image_topic"}, {"image_topic", "content_type"}),
}
TOPIC = re.compile(r"homeassistant/device/(?:[a-zA-Z0-9_-]+/)?[a-zA-Z0-9_-]+/config")


def expanded(tree: dict[str, Any], names: dict[str, str] = ABBREVIATIONS) -> dict[str, Any]:
    """Full names, each abbreviation one that Home Assistant knows; none beside its full name."""
    full = {names.get(key, key): value for key, value in tree.items()}
    assert len(full) == len(tree)
    return full


def must_be_topic(topic: Any) -> None:
    assert isinstance(topic, str)
    assert 0 < len(topic.encode()) < 65536
    assert not re.search(r"[+#\0]", topic)


def must_be_availability(told: list[dict[str, str]]) -> None:
    assert told
    for each in map(expanded, told):
        assert set(each) <= {
            "topic",
            "payload_available",
            "payload_not_available",
            "value_template",
        }
        must_be_topic(each["topic"])
        for word in ("online", "offline", "stopped", "connecting", "stalled", "disabled"):
            heard = jinja2.Template(each["value_template"]).render(value=word)
            assert heard == ("online" if word == "online" else "offline")


def must_be_component(component: dict[str, Any]) -> None:
    required, allowed = PLATFORMS[component["platform"]]
    assert required | {"unique_id"} <= set(component)
    assert set(component) <= ENTITY | allowed
    assert isinstance(component["name"], str)
    assert component["name"]
    for key in (key for key in component if key.endswith("_topic")):
        must_be_topic(component[key])
    if "availability" in component:
        must_be_availability(component["availability"])
    category = component.get("entity_category")
    assert category in (None, "diagnostic", "config")
    assert (
        category != "config" or component["platform"] == "switch"
    )  # what can only be read is none
    if "options" in component or component.get("device_class") == "enum":
        assert component["device_class"] == "enum"
        assert len(set(component["options"])) == len(component["options"]) > 0
        assert not {"state_class", "unit_of_measurement"} & set(component)
    if component.get("device_class") == "duration":
        assert component["unit_of_measurement"] in ("ms", "s", "min", "h", "d")
    assert component.get("state_class") in (None, "measurement", "total", "total_increasing")
    assert component.get("expire_after", 1) > 0


def must_be_device(topic: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Hold a discovery payload against the rules; the same with full names."""
    assert TOPIC.fullmatch(topic)
    root = expanded(payload)
    assert {"device", "origin", "components"} <= set(root) <= ROOT
    device, origin = expanded(root["device"], OF_DEVICE), expanded(root["origin"], OF_ORIGIN)
    assert device["identifiers"]
    assert set(device) <= {"identifiers", "name", "manufacturer", "model", "sw_version"}
    assert {"name"} <= set(origin) <= {"name", "sw_version", "support_url"}
    assert root["qos"] in (0, 1, 2)
    assert root["availability_mode"] in ("all", "any", "latest")
    must_be_availability(root["availability"])
    root["components"] = {key: expanded(each) for key, each in root["components"].items()}
    for component in root["components"].values():
        must_be_component(component)
    return root


# --- our payloads


@pytest.fixture
def endpoint() -> Endpoint:
    return parse(URL)


def told(service: Steered, endpoint: Endpoint) -> dict[str, dict[str, Any]]:
    return {
        topic: must_be_device(topic, json.loads(json.dumps(device)))
        for topic, device in devices(service, endpoint).items()
    }


@pytest.mark.parametrize("is_switchable", [True, False])
async def test_every_device_keeps_the_rules(endpoint: Endpoint, is_switchable: bool) -> None:
    found = told(Steered(is_switchable=is_switchable), endpoint)
    assert set(found) == {
        "homeassistant/device/home_cams_cam/config",
        "homeassistant/device/home_cams_door-2/config",
    }
    platforms = [each["platform"] for each in found.popitem()[1]["components"].values()]
    counts = {name: platforms.count(name) for name in PLATFORMS}
    assert counts == {
        "binary_sensor": 1,
        "sensor": 4 + 3,
        "event": 1,
        "image": 1,
        "switch": 6 if is_switchable else 0,
    }


async def test_a_device_is_available_while_both_service_and_stream_are(endpoint: Endpoint) -> None:
    cam = told(Steered(), endpoint)["homeassistant/device/home_cams_cam/config"]
    topics = [each["t"] for each in cam["availability"]]
    assert topics == ["home/cams/available", "home/cams/cam/status"]
    assert cam["availability_mode"] == "all"
    for key in ("state", "enabled", "enabled_person"):  # they must work on a stream that is off
        (own,) = cam["components"][key]["availability"]
        assert own["t"] == "home/cams/available"


async def test_names_are_unique_however_streams_and_queries_are_called(endpoint: Endpoint) -> None:
    service = Steered()
    query = service.queries["person"]
    names = ["a", "a_b", "b", "b_c", "a-b", "answer_b", "state", "enabled", "event_a", "image"]
    service.states = dict.fromkeys(names, StreamState.ONLINE)
    service.queries = {name: query.model_copy(update={"streams": names}) for name in names}
    found = told(service, endpoint)
    assert len(found) == len(names)
    components = [each for device in found.values() for each in device["components"].values()]
    assert len({each["unique_id"] for each in components}) == len(components)
    states = [each["state_topic"] for each in components if each["platform"] == "binary_sensor"]
    assert len(set(states)) == len(states)


async def test_names_stay_the_same_over_restarts_and_differ_between_services() -> None:
    def names(url: str) -> set[str]:
        found = devices(Steered(), parse(url)).values()
        return {each["uniq_id"] for device in found for each in device["cmps"].values()}

    assert names(URL) == names(URL)
    assert not names(URL) & names(URL.replace("home/cams", "cabin"))
    assert not names(URL) & names(f"{URL}&node=cabin")


async def test_a_state_is_one_that_its_entity_takes(endpoint: Endpoint) -> None:
    cam = told(Steered(), endpoint)["homeassistant/device/home_cams_cam/config"]["components"]

    def state(kind: AnswerType, text: str, structured: Any = None, choices: Any = ()) -> str:
        form = Form(kind, choices)
        return topics.state(make_answer(text, form=form, structured=structured))

    person = cam["answer_person"]
    on, off = (state(AnswerType.YES_NO, "x", each) for each in (True, False))
    assert (on, off) == (person["payload_on"], person["payload_off"])
    assert state(AnswerType.YES_NO, "maybe") == state(AnswerType.NUMBER, "many") == "None"
    assert state(AnswerType.CHOICE, "light blue") in cam["answer_colour"]["options"]
    assert [state(AnswerType.NUMBER, "", n) for n in (3.0, -0.5, 1e9)] == [
        "3",
        "-0.5",
        "1000000000",
    ]
    assert state(AnswerType.TEXT, " \n") == "None"  # an empty payload would delete what is kept
    for kind in (AnswerType.TEXT, AnswerType.JSON):
        assert len(state(kind, "ä" * 5000)) == 255
    assert {kind.value for kind in EventKind} == set(cam["event_person"]["event_types"])
    assert {each.value for each in StreamState} == set(cam["state"]["options"])


async def test_diagnostics_read_what_the_stats_say(endpoint: Endpoint) -> None:
    service = Steered()
    found = told(service, endpoint)["homeassistant/device/home_cams_door-2/config"]["components"]
    stats = json.loads(topics.as_json(service.stats()))
    stats["streams"]["door-2"] |= {"fps": 2.5, "event_to_answer_ms": 310.2}

    def shown(key: str, body: Any) -> str:
        return jinja2.Template(found[key]["value_template"]).render(value_json=body)

    assert found["fps"]["state_topic"] == "home/cams/stats"
    assert (shown("fps", stats), shown("latency", stats)) == ("2.5", "310.2")
    for nothing in ({"streams": {}}, {"streams": {"door-2": {"fps": None}}}):
        assert (shown("fps", nothing), shown("latency", nothing)) == ("None", "None")


# --- announcing and taking back


def published(due: tuple[list[Any], list[str]]) -> list[tuple[str, Any]]:
    messages, _ = due
    assert all(message.is_retained for message in messages)
    return [(m.topic, json.loads(m.payload) if m.payload else None) for m in messages]


@pytest.fixture
def announcements(endpoint: Endpoint) -> Announcements:
    return Announcements(endpoint)


async def test_a_device_is_told_once_and_anew_after_a_new_start(
    announcements: Announcements, endpoint: Endpoint
) -> None:
    wanted = devices(Steered(), endpoint)
    assert published(announcements.due(wanted)) == list(wanted.items())
    assert announcements.due(wanted) == ([], [])
    announcements.forget()
    assert published(announcements.due(wanted)) == list(wanted.items())


async def test_a_query_that_is_gone_is_removed_and_its_states_are_cleared(
    announcements: Announcements, endpoint: Endpoint
) -> None:
    service = Steered()
    announcements.due(devices(service, endpoint))
    gone = {"answer_person": "binary_sensor", "event_person": "event", "enabled_person": "switch"}
    del service.queries["person"]
    due = announcements.due(devices(service, endpoint))
    told, emptied = published(due), due[1]
    for stream in ("cam", "door-2"):
        first, last = [body for topic, body in told if topic.endswith(f"_{stream}/config")]
        removed = {key: each for key, each in first["cmps"].items() if key not in last["cmps"]}
        assert removed == {key: {"p": platform} for key, platform in gone.items()}
        must_be_device(f"homeassistant/device/x_{stream}/config", last)
        cleared = {topic for topic in emptied if f"/{stream}/" in topic}
        root = f"home/cams/{stream}/query/person"
        assert cleared == {f"{root}/{e}" for e in ("state", "attributes", "event", "enabled/state")}
    assert announcements.due(devices(service, endpoint)) == ([], [])


async def test_what_an_earlier_process_announced_is_taken_back(
    announcements: Announcements, endpoint: Endpoint
) -> None:
    service = Steered()
    for topic, device in devices(service, endpoint).items():
        announcements.found(topic, json.dumps(device).encode())
    del service.states["cam"]
    due = announcements.due(devices(service, endpoint))
    topics = [*(topic for topic, body in published(due) if body is None), *due[1]]
    assert "homeassistant/device/home_cams_cam/config" in topics
    assert {"home/cams/cam/status", "home/cams/cam/status/attributes"} <= set(topics)
    assert "home/cams/cam/query/person/state" in topics
    assert not [topic for topic in topics if "door-2" in topic or topic == "home/cams/stats"]


async def test_what_others_announced_is_left_alone(
    announcements: Announcements, endpoint: Endpoint
) -> None:
    other = devices(Steered(), parse(URL.replace("home/cams", "cabin")))
    strange = {"o": {"name": "stream-sttm"}, "avty": [{"t": "home/cams/available"}], "cmps": {}}
    bait = {**strange, "cmps": {"x": {"p": "sensor", "stat_t": "elsewhere/state"}}}
    for payload in (
        *map(json.dumps, other.values()),
        "", "null", "[]", "{", '{"o": 1}', '{"o": {"name": "stream-sttm"}, "avty": [], "cmps": []}',
        "[" * 100_000, "\udcff",
    ):  # fmt: skip
        body = payload.encode(errors="surrogateescape")
        announcements.found("homeassistant/device/home_cams_old/config", body)
    announcements.found("homeassistant/device/bait/config", json.dumps(bait).encode())
    announcements.found("home/cams/elsewhere", json.dumps(strange).encode())
    told, emptied = announcements.due(devices(Steered(), endpoint))
    assert emptied == []
    assert [m.topic for m in told if not m.payload] == ["homeassistant/device/bait/config"]


@pytest.mark.parametrize("kind", list(AnswerType))
async def test_an_entity_of_another_platform_replaces_the_one_before(
    announcements: Announcements, endpoint: Endpoint, kind: AnswerType
) -> None:
    service = Steered()
    announcements.due(devices(service, endpoint))
    choices = ["a", "b"] if kind is AnswerType.CHOICE else []
    person = service.queries["person"]
    service.queries["person"] = person.model_copy(update={"type": kind, "choices": choices})
    told, emptied = announcements.due(devices(service, endpoint))
    steps = [
        json.loads(each.payload)["cmps"]["answer_person"]
        for each in told
        if each.topic.endswith("_cam/config")
    ]
    if kind is AnswerType.YES_NO:
        assert (steps, emptied) == ([], [])
        return
    assert steps[0] == {"p": "binary_sensor"}
    assert steps[-1]["p"] == "sensor"
    # its state goes on under the same topic; only the event's, which can't come any more, is emptied
    assert {each for each in emptied if "/cam/" in each} == {"home/cams/cam/query/person/event"}


@pytest.mark.parametrize("said", ["None", " None\n"])
@pytest.mark.parametrize("kind", [AnswerType.CHOICE, AnswerType.TEXT, AnswerType.JSON])
def test_none_as_an_answer_does_not_read_as_unknown(kind: AnswerType, said: str) -> None:
    choices = ("None", "a car") if kind is AnswerType.CHOICE else ()
    assert topics.state(make_answer(said, form=Form(kind, choices))) == "none" != topics.UNKNOWN


async def test_every_choice_is_a_state_that_its_entity_takes(endpoint: Endpoint) -> None:
    service = Steered()
    choices = ["None", "a car", "light  blue", "ä" * 200, "unknown"]
    colour = {"streams": ["cam"], "type": "choice", "choices": choices, "ask": "?"}
    service.queries["colour"] = QuerySettings.model_validate(colour)
    cam = told(service, endpoint)["homeassistant/device/home_cams_cam/config"]["components"]
    form = Form(AnswerType.CHOICE, tuple(choices))
    states = [topics.state(make_answer(choice, form=form)) for choice in choices]
    assert states == cam["answer_colour"]["options"]
    assert "None" not in states


async def test_only_what_can_have_events_has_an_event_entity(endpoint: Endpoint) -> None:
    service = Steered()
    alert = {"streams": ["cam"], "type": "choice", "choices": ["fire", "no"], "alert_on": ["fire"]}
    service.queries["alarm"] = QuerySettings.model_validate({**alert, "ask": "?"})
    cam = told(service, endpoint)["homeassistant/device/home_cams_cam/config"]["components"]
    events = {key for key, each in cam.items() if each["platform"] == "event"}
    assert events == {"event_person", "event_alarm"}


@pytest.mark.parametrize("url", [URL, URL.partition("?")[0]])
async def test_topics_are_emptied_at_once_only_where_home_assistant_is_not_told(url: str) -> None:
    service = Steered()
    sink = MqttSink(url, commands=service)
    publisher = sink._publisher
    assert publisher is not None
    sink._retained |= {message.topic: message for message in publisher._changes()}
    del service.queries["person"]
    at_once = [each.topic for each in publisher._changes() if not each.payload]
    later = [each.topic for each in publisher.unfinished()]
    is_told = "discovery" in url
    assert bool(later) == is_told != bool(at_once)
    state = "home/cams/cam/query/person/enabled/state"
    assert state in (later if is_told else at_once)


async def test_a_topic_in_use_again_is_not_emptied(endpoint: Endpoint) -> None:
    service = Steered()
    sink = MqttSink(URL, commands=service)
    publisher = sink._publisher
    assert publisher is not None
    sink._retained |= {message.topic: message for message in publisher._changes()}
    person = service.queries.pop("person")
    publisher._changes()
    service.queries["person"] = person
    sink._retained |= {message.topic: message for message in publisher._changes()}
    left = {each.topic for each in publisher.unfinished()}
    assert "home/cams/cam/query/person/state" not in left
    assert "home/cams/cam/query/person/enabled/state" not in left


# --- with a real broker


@pytest.mark.server
@pytest.mark.parametrize("gone", ["query", "stream"])
async def test_topics_are_emptied_after_the_announcement_is_taken_back(
    broker: Mosquitto, gone: str
) -> None:
    service = Steered()
    config = "homeassistant/device/test_cam/config"
    with broker.reader("#") as reader:
        async with MqttSink(f"{broker.url}?discovery=homeassistant", commands=service) as sink:
            await sink.report(make_status("cam"))
            await sink.send(service.known(make_answer(query="scene")))
            await until(lambda: bool(reader.payloads("test/stats")))
            if gone == "query":
                del service.queries["scene"]
            else:
                del service.states["cam"]
                await sink.report(make_status("cam", StreamState.DISABLED))
            topic = "test/cam/query/scene/attributes"
            await until(lambda: not reader.payloads(topic)[-1])
    heard = [(each["topic"], each["payload"] or "") for each in reader.messages()]
    last = max(place for place, (topic, _) in enumerate(heard) if topic == config)
    emptied = [place for place, (topic, text) in enumerate(heard) if not text and topic != config]
    assert emptied
    assert min(emptied) > last
    if gone == "stream":
        assert {"test/cam/status", "test/cam/status/attributes"} <= {heard[e][0] for e in emptied}


def configurations(messages: Iterator[dict[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for message in messages:
        if message["topic"].startswith("homeassistant/"):
            found.setdefault(message["topic"], []).append(message["payload"])
    return found


@pytest.mark.server
async def test_entities_appear_change_and_vanish_at_a_real_broker(broker: Mosquitto) -> None:
    url = f"{broker.url}?discovery=homeassistant&snapshots=1"
    cam, door = (f"homeassistant/device/test_{name}/config" for name in ("cam", "door-2"))
    service = Steered()
    with broker.reader("#") as reader:

        def configs() -> dict[str, list[str]]:
            return configurations(iter(reader.messages()))

        async with MqttSink(url, commands=service) as sink:
            await until(lambda: set(configs()) == {cam, door})
            for topic, payloads in configs().items():
                must_be_device(topic, json.loads(payloads[0]))
            form = Form(AnswerType.YES_NO)
            yes = make_answer("yes", query="person", form=form, structured=True)
            await sink.send(service.known(yes))
            await sink.send_event(make_event(query="person"))
            await sink.report(make_status("cam"))
            await until(lambda: bool(reader.payloads("test/cam/query/person/event")))
            event = json.loads(reader.payloads("test/cam/query/person/event")[0])
            assert (event["event_type"], event["id"]) == ("new", "e1")
            assert json.loads(reader.payloads("test/events")[0])["kind"] == "new"
            assert reader.payloads("test/cam/query/person/state")[-1] == "ON"
            await until(lambda: bool(reader.payloads("test/cam/snapshot")))
            stats = json.loads(reader.payloads("test/stats")[0])
            assert set(stats["streams"]) == {"cam", "door-2"}

            before = len(configs()[cam])
            await asyncio.to_thread(publish, broker, "homeassistant/status", "online")
            await until(lambda: len(configs()[cam]) > before)

            broker.stop(signal.SIGKILL)
            (broker.folder / "mosquitto.db").unlink(missing_ok=True)  # the broker has forgotten all
            broker.start()
            with broker.reader("homeassistant/#") as late:
                await until(lambda: {m["topic"] for m in late.messages()} == {cam, door})


@pytest.mark.server
async def test_what_is_configured_no_more_vanishes_from_a_real_broker(broker: Mosquitto) -> None:
    url = f"{broker.url}?discovery=homeassistant"
    cam, door = (f"homeassistant/device/test_{name}/config" for name in ("cam", "door-2"))
    service = Steered()

    def kept(reader: Reader) -> dict[str, str]:
        last = {message["topic"]: message["payload"] for message in reader.messages()}
        return {t: payload for t, payload in last.items() if payload and not t.endswith("/answer")}

    with broker.reader("#") as reader:
        async with MqttSink(url, commands=service) as sink:
            for stream in service.states:
                await sink.report(make_status(stream))
                await sink.send(service.known(make_answer(stream=stream, query="person")))
                await sink.send(service.known(make_answer(stream=stream, query="scene")))
            await until(lambda: {cam, door} <= set(kept(reader)))
        # a new start, with one stream and one query less
        del service.states["door-2"], service.queries["person"]
        for name, query in service.queries.items():
            service.queries[name] = query.model_copy(update={"streams": ["cam"]})
        async with MqttSink(url, commands=service) as sink:
            await until(lambda: door not in kept(reader))
            await until(lambda: "answer_person" not in json.loads(kept(reader)[cam])["cmps"])
            gone = ("/door-2/", "/query/person/state", "/query/person/attributes")
            await until(lambda: not [t for t in kept(reader) if any(each in t for each in gone)])
            # and while it runs
            del service.queries["scene"]
            await until(lambda: "answer_scene" not in json.loads(kept(reader)[cam])["cmps"])
            await until(lambda: "test/cam/query/scene/state" not in kept(reader))
            assert "test/cam/query/count/enabled/state" in kept(reader)


def publish(broker: Mosquitto, topic: str, payload: str, *options: str) -> None:
    """Publish as an outside client."""
    command = ["mosquitto_pub", "-h", "127.0.0.1", "-p", str(broker.port), "-q", "1"]
    subprocess.run([*command, "-t", topic, "-m", payload, *options], check=True, timeout=20)


async def test_discovery_is_off_unless_asked_for() -> None:
    assert parse("mqtt://broker").discovery is None
    quiet, asked = (
        MqttSink(f"mqtt://broker{options}", commands=Steered())._publisher
        for options in ("", "?discovery=ha/main")
    )
    assert quiet is not None
    assert asked is not None
    assert quiet.subscriptions == ["stream_sttm/onConnect"]
    assert asked.subscriptions[1:] == ["ha/main/device/+/config", "ha/main/status"]
