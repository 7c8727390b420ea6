"""What is published on MQTT and what is received: a topic, a payload, and what goes with them.

Plain data; knows no client library.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """Something to publish with QoS 1; `correlation` reaches MQTT 5 readers only."""

    topic: str
    payload: bytes
    is_retained: bool = False
    correlation: bytes | None = None


@dataclass(frozen=True, slots=True)
class Incoming:
    """Something received; `is_retained` where the broker had kept it from before."""

    topic: str
    payload: bytes
    is_retained: bool = False
    response_topic: str | None = None
    correlation: bytes | None = None
