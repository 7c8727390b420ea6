"""The metrics of a stream's memory after each window, and of the device that holds it."""

from __future__ import annotations

import torch

from stream_sttm import metrics
from stream_sttm.engine.session import StreamSession
from stream_sttm.engine.view import Appended


def begin(stream: str) -> None:
    """Create the metrics of a stream that has done nothing yet, so that ratios of zero are defined."""
    metrics.begin_stream(stream)
    for work in ("encoded", "reused"):
        metrics.VISION_TOKENS.labels(stream, work)
    metrics.RECALLED_TOKENS.labels(stream)


def show(session: StreamSession, done: Appended, *, encoded: int) -> None:
    """Set the metrics of a window: what it did to the memory, and how many of its tokens were `encoded`."""
    stream = session.stream
    metrics.VISION_TOKENS.labels(stream, "encoded").inc(encoded)
    metrics.VISION_TOKENS.labels(stream, "reused").inc(done.before_merge - encoded)
    metrics.VISUAL_TOKENS.labels(stream, "before_merge").inc(done.before_merge)
    metrics.VISUAL_TOKENS.labels(stream, "after_merge").inc(done.after_merge)
    metrics.MERGE_RATIO.labels(stream).set(done.after_merge / done.before_merge)
    metrics.KV_TOKENS.labels(stream).set(len(session.cache.deep))
    metrics.KV_BYTES.labels(stream).set(session.cache.nbytes)
    metrics.KV_EVICTED.labels(stream).inc(done.evicted)
    if done.rebased:
        metrics.KV_REBUILDS.labels(stream, "rebase").inc()
    metrics.MEMORY_SPAN.labels(stream).set(session.span_seconds)
    metrics.ARCHIVE_BYTES.labels(stream).set(session.archive.nbytes if session.archive else 0)
    device = session.cache.deep.sizes.device
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        metrics.GPU_MEMORY.labels("free").set(free)
        metrics.GPU_MEMORY.labels("allocated").set(torch.cuda.memory_allocated(device))
        metrics.GPU_MEMORY.labels("reserved").set(torch.cuda.memory_reserved(device))
