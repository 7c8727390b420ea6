"""The newest frames unmerged behind a memory that is shown without them, for a moment."""

from __future__ import annotations

from stream_sttm.engine import forward as decoder
from stream_sttm.engine.cache.positions import Grid, TimeAxis
from stream_sttm.engine.cache.rolling import CacheSnapshot, RollingCache
from stream_sttm.engine.cache.suffix import Suffix
from stream_sttm.models.family import VideoLLM
from stream_sttm.visual_tokens import VisualTokens


def behind(
    model: VideoLLM,
    axis: TimeAxis,
    memory: tuple[RollingCache, CacheSnapshot],
    tokens: VisualTokens,
    grid: Grid,
    *,
    first: int,
) -> Suffix:
    """Whole frames, as they are before layer `first`, from there on, behind a snapshot whose bands there lack them."""
    cache, snapshot = memory
    suffix = Suffix(decoder.shape_of(model), rows=1, capacity=len(tokens), first=first)
    hidden = tokens.features[None]
    mask = decoder.causal(len(tokens), device=hidden.device)
    for band, seen in zip(cache.bands, snapshot.bands, strict=True):
        if band.first < first:
            continue
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
