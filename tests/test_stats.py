"""The numbers as JSON are those of the metrics, by stream and sink, with rates over the last seconds."""

from __future__ import annotations

import json

from stream_sttm import metrics
from stream_sttm.stats import Stats
from tests.support.answers import make_status


def test_counts_are_summed_by_stream_and_sink_and_rates_taken_over_seconds() -> None:
    now = 1000.0
    stats = Stats(clock=lambda: now)
    metrics.FRAMES_RECEIVED.labels("stats-a").inc(10)
    for reason, count in (("still", 3), ("late", 4)):
        metrics.FRAMES_DROPPED.labels("stats-a", reason).inc(count)
    metrics.SINK_DROPPED.labels("stats-broker", "full").inc(2)
    metrics.SINK_OUTBOX_DEPTH.labels("stats-broker").set(7)
    statuses = [make_status("stats-a"), make_status("stats-new")]
    first = stats.collect(statuses, model="demo")
    assert first["streams"]["stats-a"]["fps"] is None
    assert first["streams"]["stats-a"]["frames_dropped"] == 7
    assert first["streams"]["stats-new"]["frames_received"] is None
    assert first["sinks"]["stats-broker"] == {"waiting": 7, "dropped": 2}
    now += 5.0
    metrics.FRAMES_RECEIVED.labels("stats-a").inc(20)
    assert stats.collect(statuses, model="demo")["streams"]["stats-a"]["fps"] == 6.0
    now += 1.0  # too soon for a new rate
    assert stats.collect(statuses, model="demo")["streams"]["stats-a"]["fps"] == 6.0
    now += 9.0
    told = stats.collect(statuses, model="demo")
    assert told["streams"]["stats-a"]["fps"] == 0.0
    assert told["uptime_s"] == 15.0
    assert set(told["streams"]) == {"stats-a", "stats-new"}
    assert json.loads(json.dumps(told)) == told
