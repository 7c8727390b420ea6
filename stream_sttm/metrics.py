"""Every Prometheus metric of the project, one row each. Each is incremented where the thing happens.

Base units, `_total` for counters, histograms instead of averages. Labels are names from the configuration or fixed
words, never a URL or a text. A series that an alert reads exists as soon as its stream or sink begins, because a counter
that appears with its first error has not increased. It ends with its stream, query or sink.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from prometheus_client import Counter, Gauge, Histogram, Info
from prometheus_client.metrics import MetricWrapperBase

_P = "stream_sttm_"
_LATENCY = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 8, 15, 30, 60)
_STAGE = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)

STAGES = ("decode", "preprocess", "encode", "merge", "prefill", "decode_text", "publish")

# ingest
FRAMES_RECEIVED = Counter(
    _P + "frames_received_total", "Frames that arrived from a stream.", ["stream"]
)
FRAMES_DROPPED = Counter(
    _P + "frames_dropped_total", "Frames that were not encoded, by reason.", ["stream", "reason"]
)
STREAM_UP = Gauge(_P + "stream_up", "1 while a stream is online, else 0.", ["stream"])
STREAM_STATE = Gauge(
    _P + "stream_state",
    "1 for the state a stream is in, else 0: connecting, online, stalled, offline, disabled.",
    ["stream", "state"],
)
STREAM_RECONNECTS = Counter(
    _P + "stream_reconnects_total", "Reconnections of a stream, by reason.", ["stream", "reason"]
)
STREAM_LAST_FRAME = Gauge(
    _P + "stream_last_frame_timestamp_seconds", "Wall clock of a stream's newest frame.", ["stream"]
)
DECODE_MODE = Gauge(
    _P + "decode_mode",
    "1 for what of a stream is decoded now, else 0: keyframes, references, full.",
    ["stream", "mode"],
)
DECODE_CPU = Counter(
    _P + "decode_cpu_seconds_total", "CPU time of a stream's decoder processes.", ["stream"]
)
# engine
STAGE_DURATION = Histogram(
    _P + "stage_duration_seconds",
    "Time spent in one stage of the pipeline.",
    ["stage"],
    buckets=_STAGE,
)
VISION_TOKENS = Counter(
    _P + "vision_tokens_total",
    "Visual tokens before merging, by what the vision tower had to do for them: encoded, reused.",
    ["stream", "work"],
)
VISUAL_TOKENS = Counter(
    _P + "visual_tokens_total",
    "Visual tokens by kind: before_merge, after_merge.",
    ["stream", "kind"],
)
MERGE_RATIO = Gauge(
    _P + "merge_ratio", "Tokens kept of those that came in, over the newest clip.", ["stream"]
)
KV_TOKENS = Gauge(_P + "kv_tokens", "Visual tokens in a stream's rolling cache.", ["stream"])
KV_BYTES = Gauge(_P + "kv_bytes", "Bytes allocated for a stream's rolling cache.", ["stream"])
KV_EVICTED = Counter(
    _P + "kv_evicted_tokens_total", "Visual tokens that left a stream's rolling cache.", ["stream"]
)
KV_REBUILDS = Counter(
    _P + "kv_rebuilds_total",
    "Times a stream's memory was moved or started anew, by reason.",
    ["stream", "reason"],
)
STATE = Counter(
    _P + "state_total",
    "Memories, and pasts kept for recall, saved and taken back, by result: saved, failed, restored, refused, too_old.",
    ["stream", "result"],
)
MEMORY_SPAN = Gauge(
    _P + "memory_span_seconds",
    "Seconds of video that a stream's rolling cache reaches back.",
    ["stream"],
)
ARCHIVE_BYTES = Gauge(
    _P + "archive_bytes", "Bytes kept of what a stream's memory has seen, for recall.", ["stream"]
)
RECALLED_TOKENS = Counter(
    _P + "recalled_tokens_total", "Visual tokens brought back from a stream's past.", ["stream"]
)
ENGINE_STEPS = Counter(
    _P + "engine_steps_total", "Steps of the engine, by what was done.", ["work"]
)
ENGINE_LAST_STEP = Gauge(
    _P + "engine_last_step_timestamp_seconds", "Wall clock of the engine's newest step."
)
GPU_MEMORY = Gauge(
    _P + "gpu_memory_bytes", "Device memory by kind: allocated, reserved, free.", ["kind"]
)
OOM_RECOVERIES = Counter(
    _P + "oom_recoveries_total", "Times the engine went on after the device ran out of memory."
)
QUEUE_DEPTH = Gauge(_P + "queue_depth", "Things waiting in a bounded queue.", ["queue"])
ADMISSION_REJECTED = Counter(
    _P + "admission_rejected_total", "Questions refused before they ran, by reason.", ["reason"]
)
# answers
ANSWERS = Counter(
    _P + "answers_total",
    "Questions by outcome: answered, late, rejected, expired, failed.",
    ["stream", "query", "outcome"],
)
EVENT_TO_ANSWER = Histogram(
    _P + "event_to_answer_seconds",
    "Capture of the newest frame an answer rests on to its delivery.",
    ["stream", "sink"],
    buckets=_LATENCY,
)
TIME_TO_ANSWER = Histogram(
    _P + "time_to_answer_seconds",
    "A question's arrival in the engine to its finished answer.",
    ["stream"],
    buckets=_LATENCY,
)
UNCLEAR = Counter(
    _P + "unclear_answers_total",
    "Answers of a query with events that said neither, or not certainly enough.",
    ["stream", "query"],
)
EVENTS = Counter(
    _P + "events_total",
    "Tellings of events by kind: new, update, end.",
    ["stream", "query", "kind"],
)
TRIGGERS = Counter(
    _P + "triggers_total",
    "Calls for an answer from outside, by source (manual, frigate) and result: asked, waiting, unheard, garbage.",
    ["source", "result"],
)
RELOADS = Counter(
    _P + "config_reloads_total",
    "Times the configuration was read anew, by result: applied, unchanged, refused.",
    ["result"],
)
CONFIG_CURRENT = Gauge(
    _P + "config_is_current",
    "1 while the configuration last read is in force, 0 if it was refused.",
)
# outputs
MQTT_CONNECTED = Gauge(
    _P + "mqtt_connected", "1 while connected to the MQTT broker, else 0.", ["broker"]
)
SINK_OUTBOX_DEPTH = Gauge(_P + "sink_outbox_depth", "Messages waiting for a sink.", ["sink"])
SINK_DROPPED = Counter(
    _P + "sink_dropped_total", "Messages given up for a sink, by reason.", ["sink", "reason"]
)
DEAD_LETTERS = Counter(
    _P + "dead_letters_total",
    "What a webhook would not take, by where it went: kept, lost.",
    ["sink", "result"],
)
MQTT_REQUESTS = Counter(
    _P + "mqtt_requests_total",
    "Questions and commands that came over MQTT, by outcome: done, refused, dropped.",
    ["broker", "outcome"],
)
STORE_ERRORS = Counter(_P + "store_errors_total", "Answers that could not be written to the store.")
FEED_DROPPED = Counter(
    _P + "feed_dropped_total", "Events that a slow reader of the live feed never saw."
)
BUILD_INFO = Info(_P + "build", "Version of stream-sttm and the model it runs.")

_LABELLED = tuple(
    metric
    for metric in tuple(globals().values())
    if isinstance(metric, MetricWrapperBase) and metric._labelnames  # noqa: SLF001 - not public
)
_FRAMES_LOST = ("queue_full", "engine_busy", "engine_error")
_GIVEN_UP = ("refused", "full", "expired", "lost", "unreadable", "shutdown")


def begin_engine() -> None:
    """Create the series of an engine that has made no step yet."""
    for queue in ("engine_clips", "engine_questions"):
        QUEUE_DEPTH.labels(queue)


def begin_stream(stream: str) -> None:
    """Create the series of a stream that has lost nothing yet."""
    for reason in _FRAMES_LOST:
        FRAMES_DROPPED.labels(stream, reason)


def begin_sink(sink: str) -> None:
    """Create the series of a sink that has been given nothing yet."""
    for reason in _GIVEN_UP:
        SINK_DROPPED.labels(sink, reason)


def forget(**labels: str) -> None:
    """Remove every series with these labels, because what they name is gone."""
    for metric in _LABELLED:
        if labels.keys() <= set(metric._labelnames):  # noqa: SLF001 - not public
            metric.remove_by_labels(labels)


def forget_stream(stream: str) -> None:
    """Remove every series of a stream."""
    forget(stream=stream)
    forget(queue=f"clips[{stream}]")


def forget_sink(sink: str) -> None:
    """Remove every series of a sink, a broker included."""
    forget(sink=sink)
    forget(broker=sink)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Observe the duration of the `with` body as one sample of the stage `name`, one of STAGES."""
    started = perf_counter()
    try:
        yield
    finally:
        STAGE_DURATION.labels(name).observe(perf_counter() - started)
