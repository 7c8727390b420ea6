"""Home Assistant's MQTT discovery: one device per stream, its entities for queries, switches and diagnostics.

https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload. `devices` is pure. `Announcements` knows what
was announced before, so that what is no longer configured is removed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, assert_never

from stream_sttm import __version__
from stream_sttm.config.queries import QuerySettings
from stream_sttm.sinks.commands import Commands
from stream_sttm.sinks.mqtt.message import Message
from stream_sttm.sinks.mqtt.topics import Topics, as_json, pairs, short_text
from stream_sttm.sinks.mqtt.url import Endpoint
from stream_sttm.types import AnswerType, EventKind, StreamState

ORIGIN = {"name": "stream-sttm", "sw": __version__}
STATS_EVERY = 10.0  # seconds between two publications of the statistics
_EXPIRE = int(3 * STATS_EVERY)
_TOPIC_KEYS = ("stat_t", "json_attr_t", "img_t")

Device = dict[str, Any]


def devices(commands: Commands, endpoint: Endpoint) -> dict[str, Device]:
    """Return each stream's discovery payload by its topic, abbreviated as Home Assistant allows."""
    asked = pairs(commands.standing())
    return {
        config_topic(endpoint, status.stream): _device(
            commands, endpoint, status.stream, [query for at, query in asked if at == status.stream]
        )
        for status in commands.streams()
    }


def config_topic(endpoint: Endpoint, stream: str) -> str:
    """Return the topic on which a stream's device is announced."""
    return f"{endpoint.discovery}/device/{endpoint.node}_{stream}/config"


def _device(commands: Commands, endpoint: Endpoint, stream: str, queries: list[str]) -> Device:
    topics = Topics(endpoint.prefix)
    runs = _available(topics.available)
    components = _diagnostics(topics, stream, runs)
    standing = commands.standing()
    for query in queries:
        components[f"answer_{query}"] = _answer(topics, stream, query, standing[query])
        if standing[query].makes_events:
            components[f"event_{query}"] = _event(topics, stream, query)
    if commands.is_switchable and endpoint.commands == "all":
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
            "name": f"{stream} (demo model)" if commands.model == "demo" else stream,
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
    """Return an availability: `online` while the topic says so, `offline` for any other word, such as `stopped`."""
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
            return {"p": "sensor", **entity, "dev_cla": "enum", "ops": _options(settings)}
        case AnswerType.TEXT | AnswerType.JSON:
            return {"p": "sensor", **entity}
        case _:
            assert_never(settings.type)


def _options(settings: QuerySettings) -> list[str]:
    """Return the choices as states. Home Assistant takes no state but these."""
    return list(dict.fromkeys(short_text(choice) for choice in settings.choices))


def _event(topics: Topics, stream: str, query: str) -> Device:
    return {
        "p": "event",
        "name": f"{query} event",
        "stat_t": topics.of_query(stream, query, "event"),
        "evt_typ": [kind.value for kind in EventKind],
    }


def _switch(root: str, name: str, runs: dict[str, str]) -> Device:
    """Return a switch, available while the service runs: it also works on a disabled stream."""
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
    """What was announced to Home Assistant over one broker, by this process and earlier ones."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint, self._topics = endpoint, Topics(endpoint.prefix)
        # components that may exist, by topic, then by key and platform: one that changes its platform is another entity
        self._known: dict[str, dict[tuple[str, str], Device]] = {}
        self._published: dict[str, Device] = {}  # payloads since the last `forget`, by topic

    @property
    def subscriptions(self) -> list[str]:
        """The topics to subscribe to: earlier announcements, and Home Assistant's birth message."""
        return [f"{self._endpoint.discovery}/device/+/config", self.status_topic]

    @property
    def status_topic(self) -> str:
        """The topic of Home Assistant's birth message."""
        return f"{self._endpoint.discovery}/status"

    def may_be(self, topic: str) -> bool:
        """Return whether `topic` is a discovery topic, of ours or of others."""
        prefix = f"{self._endpoint.discovery}/device/"
        return topic.startswith(prefix) and topic.endswith("/config")

    def forget(self) -> None:
        """Publish everything again next time, because Home Assistant or the broker was restarted."""
        self._published.clear()

    def found(self, topic: str, payload: bytes) -> None:
        """Take in a retained announcement. Ignores those of others and anything else."""
        try:
            device = json.loads(payload)
            is_ours = (
                device["o"]["name"] == ORIGIN["name"]
                and device["avty"][0]["t"] == self._topics.available
            )
            components = _by_platform(device["cmps"])
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return
        if is_ours and self.may_be(topic):
            self._known[topic] = components | self._known.get(topic, {})

    def due(self, wanted: Mapping[str, Device]) -> tuple[list[Message], list[str]]:
        """Return the messages after which Home Assistant has `wanted` and nothing else of ours.

        Beside them, the retained topics to empty once it has worked these off. Before, it would take an empty payload
        for an invalid state.
        """
        messages: list[Message] = []
        gone: list[str] = []
        for topic, device in wanted.items():
            components = _by_platform(device["cmps"])
            known = self._known.get(topic, {})
            removed = {kind: each for kind, each in known.items() if kind not in components}
            if removed:
                removals = {key: {"p": platform} for key, platform in removed}
                body = {**device, "cmps": device["cmps"] | removals}
                messages.append(Message(topic, as_json(body), is_retained=True))
                gone += self._emptied(removed.values(), components.values())
            if removed or self._published.get(topic) != device:
                messages.append(Message(topic, as_json(device), is_retained=True))
            self._published[topic], self._known[topic] = device, components
        for topic in [each for each in self._known if each not in wanted]:
            messages.append(Message(topic, b"", is_retained=True))
            gone += self._emptied(self._known.pop(topic).values(), ())
            self._published.pop(topic, None)
        return messages, gone

    def _emptied(self, removed: Iterable[Device], left: Iterable[Device]) -> list[str]:
        """Return the retained topics of removed entities: only ours, and no shared ones."""
        shared = {each.get(key) for each in left for key in _TOPIC_KEYS} | {self._topics.stats}
        named = [each.get(key) for each in removed for key in _TOPIC_KEYS]
        return [
            topic
            for topic in dict.fromkeys(named)
            if isinstance(topic, str)
            and topic.startswith(f"{self._topics.prefix}/")
            and not any(char in topic for char in "+#\0")
            and topic not in shared
        ]


def _by_platform(components: Mapping[str, Device]) -> dict[tuple[str, str], Device]:
    """Return components by key and platform."""
    return {
        (str(key), str(each.get("p", "sensor"))): dict(each) for key, each in components.items()
    }
