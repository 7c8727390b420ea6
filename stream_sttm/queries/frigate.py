"""Parse Frigate's messages on its topics `events` and `reviews` as new sightings of a camera.

Pure: bytes in, sightings out. Only what is new triggers a query: an object or review that begins, or a label that an
update adds. Knows nothing of MQTT, streams or queries.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from stream_sttm.errors import NotASighting

MAX_PAYLOAD = 256 * 1024  # bytes; Frigate's own have a few thousand
_TYPES = ("new", "update", "end", "genai")
_MAX_WORD = 100  # characters of a camera's or label's name


@dataclass(frozen=True, slots=True)
class Sighting:
    """New labels, in lower case, on one of Frigate's cameras."""

    camera: str
    labels: frozenset[str]

    def calls_for(self, triggers: list[str]) -> bool:
        """Return whether it triggers a query with these `on_event`."""
        return any(
            trigger == "frigate" or trigger.removeprefix("frigate:") in self.labels
            for trigger in triggers
            if trigger.partition(":")[0] == "frigate"
        )


def sighting(payload: bytes) -> Sighting | None:
    """Return what a message on `frigate/events` or `frigate/reviews` newly reports, None where nothing is new.

    Raises NotASighting, in one line, for anything else.
    """
    message = _map(_decoded(payload), "the message")
    kind = message.get("type")
    if kind not in _TYPES:
        raise NotASighting("frigate: the message's type is none of new, update, end")
    after = _map(message.get("after"), "after")
    camera = _word(after.get("camera"), "after.camera")
    labels = _labels(after)
    if kind in ("end", "genai") or after.get("false_positive") is True:
        return None
    if kind == "update" and isinstance(before := message.get("before"), dict):
        was_false = before.get("false_positive") is True
        labels -= frozenset() if was_false else _labels(before)
        return Sighting(camera, labels) if labels else None
    return Sighting(camera, labels)


def _decoded(payload: bytes) -> Any:
    if len(payload) > MAX_PAYLOAD:
        raise NotASighting(f"frigate: a message of {len(payload)} bytes; {MAX_PAYLOAD} are read")
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        raise NotASighting("frigate: the message is not JSON") from None


def _labels(side: dict[str, Any]) -> frozenset[str]:
    """Return an event's label, or the objects of a review."""
    if "label" in side:
        return frozenset([_word(side["label"], "label").lower()])
    objects = _map(side.get("data"), "data").get("objects")
    if not isinstance(objects, list):
        raise NotASighting("frigate: data.objects is not a list")
    return frozenset(_plain(_word(each, "data.objects").lower()) for each in objects)


def _plain(label: str) -> str:
    return label.removesuffix("-verified")  # a person whose face or a car whose plate is known


def _map(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise NotASighting(f"frigate: {name} is not a map")
    return value


def _word(value: Any, name: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= _MAX_WORD:
        raise NotASighting(f"frigate: {name} is not a short text")
    return value
