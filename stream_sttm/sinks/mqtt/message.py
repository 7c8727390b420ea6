"""Messages to publish and messages received: topic, payload and MQTT properties.

Plain data. Knows no client library.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """A message to publish with QoS 1. `correlation` (correlation data) reaches MQTT 5 readers only."""

    topic: str
    payload: bytes
    is_retained: bool = False
    correlation: bytes | None = None


@dataclass(frozen=True, slots=True)
class Incoming:
    """A received message. `is_retained`: the broker had kept it from before."""

    topic: str
    payload: bytes
    is_retained: bool = False
    response_topic: str | None = None
    correlation: bytes | None = None
