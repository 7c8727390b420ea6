"""The metrics as one JSON object, by stream and sink, for clients that don't scrape Prometheus.

Reads the metrics' own registry, so that both agree. Knows nothing of who reads it.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import REGISTRY

from stream_sttm import __version__
from stream_sttm.types import StreamStatus

_P = "stream_sttm_"
_OF_STREAM = {  # the keys of a stream, by the series that is summed up
    _P + "frames_received_total": "frames_received",
    _P + "frames_dropped_total": "frames_dropped",
    _P + "stream_reconnects_total": "reconnects",
    _P + "answers_total": "questions",
    _P + "merge_ratio": "merge_ratio",
    _P + "kv_tokens": "kv_tokens",
    _P + "memory_span_seconds": "memory_span_s",
}
_OF_SINK = {
    _P + "sink_outbox_depth": "waiting",
    _P + "sink_dropped_total": "dropped",
}
_OF_BROKER = {_P + "mqtt_connected": "connected"}  # a broker is a sink
_OF_ALL = {
    _P + "store_errors_total": "store_errors",
    "process_resident_memory_bytes": "memory_bytes",
}
_RATE_OVER = 5.0  # seconds that a rate is measured over, at least


class Stats:
    """Collects the numbers. Remembers frame counts for the rates."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._started = clock()
        self._before: tuple[float, dict[str, float]] = (self._started, {})
        self._rates: dict[str, float] = {}

    def collect(self, streams: Iterable[StreamStatus], *, model: str) -> dict[str, Any]:
        """Return the numbers now, null where not known yet. `fps` appears after five seconds."""
        totals = _totals()
        self._measure(totals["stream"])
        return {
            "at": round(self._clock(), 3),
            "version": __version__,
            "model": model,
            "uptime_s": round(self._clock() - self._started, 1),
            **totals["all"].get("", {}),
            "streams": {
                status.stream: {
                    "state": status.state.value,
                    "last_frame_at": status.last_frame_at,
                    "fps": self._rates.get(status.stream),
                    "event_to_answer_ms": None,  # filled in by who delivers the answers
                    **dict.fromkeys(_OF_STREAM.values()),
                    **totals["stream"].get(status.stream, {}),
                }
                for status in streams
            },
            "sinks": dict(totals["sink"]),
        }

    def _measure(self, by_stream: dict[str, dict[str, float]]) -> None:
        now = self._clock()
        at, before = self._before
        if now - at < _RATE_OVER:
            return
        counts = {name: each.get("frames_received", 0.0) for name, each in by_stream.items()}
        self._rates = {
            name: round((count - before.get(name, 0.0)) / (now - at), 2)
            for name, count in counts.items()
        }
        self._before = (now, counts)


def _totals() -> dict[str, dict[str, dict[str, float]]]:
    """Return sums by kind (stream, sink, all), by the name of the stream or sink, and by key."""
    totals: dict[str, dict[str, dict[str, float]]] = {"stream": {}, "sink": {}, "all": {}}
    for family in REGISTRY.collect():
        for sample in family.samples:
            for kind, label, names in (
                ("stream", "stream", _OF_STREAM),
                ("sink", "sink", _OF_SINK),
                ("sink", "broker", _OF_BROKER),
                ("all", "", _OF_ALL),
            ):
                key = names.get(sample.name)
                if key and math.isfinite(sample.value):  # NaN is no JSON
                    name = sample.labels.get(label, "")
                    totals[kind].setdefault(name, defaultdict(float))[key] += sample.value
    return {
        kind: {name: dict(numbers) for name, numbers in each.items()}
        for kind, each in totals.items()
    }
