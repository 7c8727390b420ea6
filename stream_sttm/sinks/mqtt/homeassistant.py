"""Home Assistant's MQTT discovery: one device per stream, its entities for queries, switches and diagnostics.

https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload. `devices` is pure; `Announcements` knows
what Home Assistant may have been told before, so that what is configured no more is taken back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from stream_sttm import __version__
from stream_sttm.config.queries import QuerySettings
from stream_sttm.sinks.commands import Commands
from stream_sttm.sinks.mqtt.message import Message
from stream_sttm.sinks.mqtt.topics import Topics, as_json, pairs
from stream_sttm.sinks.mqtt.url import Endpoint
from stream_sttm.types import AnswerType, EventKind, StreamState

ORIGIN = {"name": "stream-sttm", "sw": __version__}
STATS_EVERY = 10.0  # seconds between two publications of what the diagnostics show
_EXPIRE = int(3 * STATS_EVERY)
_TOPIC_KEYS = ("stat_t", "json_attr_t", "img_t")

Device = dict[str, Any]


def devices(commands: Commands, endpoint: Endpoint) -> dict[str, Device]:
    """Each stream's discovery payload by its topic; abbreviated as Home Assistant allows."""
    asked = pairs(commands.standing())
    return {
        config_topic(endpoint, status.stream): _device(
            commands, endpoint, status.stream, [query for at, query in asked if at == status.stream]
        )
        for status in commands.streams()
    }


def config_topic(endpoint: Endpoint, stream: str) -> str:
    """Where a stream's device is announced."""
    return f"{endpoint.discovery}/device/{endpoint.node}_{stream}/config"


def _device(commands: Commands, endpoint: Endpoint, stream: str, queries: list[str]) -> Device:
    topics = Topics(endpoint.prefix)
    runs = _available(topics.available)
    components = _diagnostics(topics, stream, runs)
    standing = commands.standing()
    for query in queries:
        components[f"answer_{query}"] = _answer(topics, stream, query, standing[query])
        components[f"event_{query}"] = _event(topics, stream, query)
    if commands.is_switchable:
        components["enabled"] = _switch(topics.of_stream(stream, "enabled"), "Watched", runs)
        for query in queries:
            root = topics.of_query(stream, query, "enabled")
            components[f"enabled_{query}"] = _switch(root, f"{query} asked", runs)
    if endpoint.snapshots is not None:
        components["image"] = {
            "p": "image",
            "name": "Last frame",
            "img_t": topics.of_stream(stream, "snapshot"),
            "cont_type": "image/jpeg",
        }
    for key, component in components.items():
        component["uniq_id"] = f"{endpoint.node}.{stream}.{key}"
    return {
        "dev": {
            "ids": [f"{endpoint.node}_{stream}"],
            "name": stream,
            "mf": "stream-sttm",
            "mdl": commands.model,
            "sw": __version__,
        },
        "o": ORIGIN,
        "avty": [runs, _available(topics.of_stream(stream, "status"))],
        "avty_mode": "all",
        "qos": 1,
        "cmps": components,
    }


def _available(topic: str) -> dict[str, str]:
    """Available while the topic says `online`; every other word, such as `stopped`, is read as `offline`."""
    return {"t": topic, "val_tpl": "{{ 'online' if value == 'online' else 'offline' }}"}


def _answer(topics: Topics, stream: str, query: str, settings: QuerySettings) -> Device:
    entity: Device = {
        "name": query,
        "stat_t": topics.of_query(stream, query, "state"),
        "json_attr_t": topics.of_query(stream, query, "attributes"),
    }
    match settings.type:
        case AnswerType.YES_NO:
            return {"p": "binary_sensor", **entity, "pl_on": "ON", "pl_off": "OFF"}
        case AnswerType.NUMBER:
            return {"p": "sensor", **entity, "stat_cla": "measurement"}
        case AnswerType.CHOICE:
            return {"p": "sensor", **entity, "dev_cla": "enum", "ops": list(settings.choices)}
    return {"p": "sensor", **entity}


def _event(topics: Topics, stream: str, query: str) -> Device:
    return {
        "p": "event",
        "name": f"{query} event",
        "stat_t": topics.of_query(stream, query, "event"),
        "evt_typ": [kind.value for kind in EventKind],
    }


def _switch(root: str, name: str, runs: dict[str, str]) -> Device:
    """A switch works as long as the service runs, on a disabled stream above all."""
    return {
        "p": "switch",
        "name": name,
        "stat_t": f"{root}/state",
        "cmd_t": f"{root}/set",
        "ent_cat": "config",
        "avty": [runs],
    }


def _diagnostics(topics: Topics, stream: str, runs: dict[str, str]) -> dict[str, Device]:
    def number(key: str) -> str:
        return (
            f"{{{{ (value_json.streams['{stream}'] | default({{}}))['{key}'] | default(none) }}}}"
        )

    measured: Device = {"p": "sensor", "stat_t": topics.stats, "stat_cla": "measurement"}
    measured |= {"exp_aft": _EXPIRE, "ent_cat": "diagnostic"}
    status = topics.of_stream(stream, "status")
    return {
        "state": {
            "p": "sensor",
            "name": "State",
            "stat_t": status,
            "json_attr_t": f"{status}/attributes",
            "dev_cla": "enum",
            "ops": [state.value for state in StreamState],
            "ent_cat": "diagnostic",
            "avty": [runs],
        },
        "fps": {
            **measured,
            "name": "Frames per second",
            "unit_of_meas": "fps",
            "val_tpl": number("fps"),
        },
        "latency": {
            **measured,
            "name": "Event to answer",
            "dev_cla": "duration",
            "unit_of_meas": "ms",
            "val_tpl": number("event_to_answer_ms"),
        },
    }


class Announcements:
    """What Home Assistant has been told over one broker, by this process and by those before it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint, self._topics = endpoint, Topics(endpoint.prefix)
        self._known: dict[str, dict[str, Device]] = {}  # the components it may have, by topic
        self._told: dict[str, Device] = {}  # payloads, since the last `forget`

    @property
    def subscriptions(self) -> list[str]:
        """What has to be subscribed to: earlier announcements, and Home Assistant's own birth."""
        return [f"{self._endpoint.discovery}/device/+/config", self.status_topic]

    @property
    def status_topic(self) -> str:
        """Where Home Assistant says that it has started."""
        return f"{self._endpoint.discovery}/status"

    def may_be(self, topic: str) -> bool:
        """Whether `topic` is one for announcements, ours or another's."""
        prefix = f"{self._endpoint.discovery}/device/"
        return topic.startswith(prefix) and topic.endswith("/config")

    def forget(self) -> None:
        """Tell everything anew next time: Home Assistant or the broker has been started anew."""
        self._told.clear()

    def found(self, topic: str, payload: bytes) -> None:
        """Take in an announcement that the broker had kept; those of others, or no announcement, are passed over."""
        try:
            device = json.loads(payload)
            is_ours = (
                device["o"]["name"] == ORIGIN["name"]
                and device["avty"][0]["t"] == self._topics.available
            )
            components = {str(key): dict(each) for key, each in device["cmps"].items()}
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return
        if is_ours and self.may_be(topic):
            self._known[topic] = components | self._known.get(topic, {})

    def due(self, wanted: Mapping[str, Device]) -> list[Message]:
        """What has to be published for Home Assistant to have `wanted` and nothing else of ours."""
        messages: list[Message] = []
        for topic, device in wanted.items():
            components = device["cmps"]
            gone = {k: c for k, c in self._known.get(topic, {}).items() if k not in components}
            if gone:
                removals = {key: {"p": each.get("p", "sensor")} for key, each in gone.items()}
                body = {**device, "cmps": components | removals}
                messages.append(Message(topic, as_json(body), is_retained=True))
                messages += self._cleared(gone.values(), components.values())
            if gone or self._told.get(topic) != device:
                messages.append(Message(topic, as_json(device), is_retained=True))
            self._told[topic], self._known[topic] = device, dict(components)
        for topic in [each for each in self._known if each not in wanted]:
            messages.append(Message(topic, b"", is_retained=True))
            messages += self._cleared(self._known.pop(topic).values(), ())
            self._told.pop(topic, None)
        return messages

    def _cleared(self, gone: Iterable[Device], left: Iterable[Device]) -> list[Message]:
        """What empties the retained topics of entities that are gone; of ours alone, and none that others share."""
        shared = {each.get(key) for each in left for key in _TOPIC_KEYS} | {self._topics.stats}
        named = [each.get(key) for each in gone for key in _TOPIC_KEYS]
        return [
            Message(topic, b"", is_retained=True)
            for topic in dict.fromkeys(named)
            if isinstance(topic, str)
            and topic.startswith(f"{self._topics.prefix}/")
            and not any(char in topic for char in "+#\0")
            and topic not in shared
        ]
