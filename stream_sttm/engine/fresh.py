"""The newest frames unmerged behind a memory that is shown without them, for a moment."""

from __future__ import annotations

from stream_sttm.engine import decoder
from stream_sttm.engine.cache import CacheSnapshot, RollingCache
from stream_sttm.engine.suffix import Suffix
from stream_sttm.engine.time_axis import Grid, TimeAxis
from stream_sttm.models.family import VideoLLM
from stream_sttm.tokens import VisualTokens


def behind(
    model: VideoLLM,
    axis: TimeAxis,
    memory: tuple[RollingCache, CacheSnapshot],
    tokens: VisualTokens,
    grid: Grid,
) -> Suffix:
    """Whole frames through all layers, behind a cache's snapshot that lacks them."""
    cache, snapshot = memory
    suffix = Suffix(decoder.shape_of(model), rows=1, capacity=len(tokens))
    hidden = tokens.features[None]
    mask = decoder.causal(len(tokens), device=hidden.device)
    for band, seen in zip(cache.bands, snapshot.bands, strict=True):
        places = axis.places(band, tokens, grid, start=axis.after(band, seen.index))
        stored = places.clone()
        stored[0] -= band.offset
        hidden = decoder.walk(
            model,
            hidden,
            (band.first, band.last),
            positions=(stored + band.pinned)[:, None],
            mask=mask,
            cache=suffix,
            prefix=(snapshot,),
        )
    suffix.commit(len(tokens))
    return suffix
