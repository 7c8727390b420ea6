"""The invariants of an endless stream, for any seed, thresholds and way to cut it into clips."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from stream_sttm.reducers.sttm import merge_video
from stream_sttm.reducers.sttm_streaming import StreamState, SttmStreaming
from tests.reducers.test_reducers import equal
from tests.reducers.test_sttm_streaming import stream
from tests.support.causal_loop import MARGIN, CausalLoop
from tests.support.moving_fields import moving_field

FRAMES, GRID = 7, (5, 6)
quick = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 10**6)
cuts = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(
    lambda sizes: [*sizes, *[FRAMES] * (sum(sizes) < FRAMES)]
)
options = st.fixed_dictionaries(
    {
        "spatial_threshold": st.sampled_from([0.3, 0.6, 0.8, 0.95]),
        "temporal_threshold": st.sampled_from([0.2, 0.5, 0.7, 0.9]),
        "root_level": st.sampled_from([0, 1]),
        "drift_threshold": st.sampled_from([-1.0, 0.4, 0.8]),
        "refresh_every": st.sampled_from([0, 3, 5]),
    }
)


def windows(features: Tensor, sizes: list[int]) -> Iterator[Tensor]:
    """Yield the features, cut into clips of these sizes, until they are used up."""
    start = 0
    for size in sizes:
        if start < features.shape[0]:
            yield features[start : start + size]
            start += size


@quick
@given(seeds, options, cuts, st.lists(st.integers(0, 60), min_size=8, max_size=8), st.booleans())
def test_stream_equals_a_plain_loop_over_the_rules(
    seed: int, chosen: dict[str, Any], sizes: list[int], evictions: list[int], average: bool
) -> None:
    reducer = SttmStreaming(**chosen, window_average=average)
    loop = CausalLoop(reducer)
    state: StreamState | None = None
    for clip, before in zip(
        windows(moving_field(seed, frames=FRAMES), sizes), evictions, strict=False
    ):
        emitted, start = len(loop.boxes), loop.frames
        cells, members = list(loop.cells), [len(group) for group in loop.members]
        for frame in clip:
            serials = loop.observe(frame)
        assume(loop.is_clear)
        tokens, state = reducer(clip, state)
        assert tokens.boxes.tolist() == loop.boxes[emitted:]
        assert tokens.sizes.tolist() == loop.cells[emitted:]
        assert state.serials.tolist() == serials
        grown = {s: loop.cells[s] - cells[s] for s in range(emitted) if loop.cells[s] > cells[s]}
        assert dict(zip(*(part.tolist() for part in state.absorbed), strict=True)) == grown
        shown = {s: frame for s, frame in enumerate(loop.last_seen) if frame >= start}
        assert dict(zip(*(part.tolist() for part in state.last_seen), strict=True)) == shown
        assert (state.frames, state.tokens) == (loop.frames, len(loop.boxes))
        looks = [
            torch.stack(group).mean(0) if average else look
            for group, look in zip(loop.members[emitted:], loop.looks[emitted:], strict=True)
        ]
        if looks:
            torch.testing.assert_close(
                tokens.features.double(), torch.stack(looks), rtol=1e-5, atol=1e-5
            )
        assert len(members) == emitted
        gone = [s for s in range(len(loop.boxes)) if s < before or (7 * s + before) % 5 == 0]
        state = state.expire(torch.tensor(gone, dtype=torch.int64))
        loop.gone |= set(gone)


@quick
@given(seeds, options, cuts)
def test_how_a_stream_is_cut_into_clips_changes_nothing(
    seed: int, chosen: dict[str, Any], sizes: list[int]
) -> None:
    features = moving_field(seed, frames=FRAMES)
    reducer = SttmStreaming(**chosen)
    whole, end = stream(reducer, [features])
    used = sum(clip.shape[0] for clip in windows(features, sizes))
    assume(used == FRAMES)
    for clips in (list(windows(features, sizes)), list(features.split(1))):
        cut, cut_end = stream(reducer, clips)
        assert equal(whole, cut)
        assert torch.equal(end.serials, cut_end.serials)
        assert equal(end.last, cut_end.last)


@quick
@given(seeds, options, cuts, st.integers(0, 2**31))
def test_every_cell_of_the_newest_frame_has_a_living_anchor_after_any_eviction(
    seed: int, chosen: dict[str, Any], sizes: list[int], dice: int
) -> None:
    reducer = SttmStreaming(**chosen)
    looks = torch.zeros(0, 8)
    state: StreamState | None = None
    gone = torch.zeros(0, dtype=torch.int64)
    for number, clip in enumerate(windows(moving_field(seed, frames=FRAMES), sizes)):
        tokens, state = reducer(clip, state)
        looks = torch.cat([looks, tokens.features])
        owner = state.serials[state.last.owner[0]]
        assert owner.shape == GRID
        assert not bool(torch.isin(owner, gone).any())
        assert bool((owner < len(looks)).all())
        assert bool(state.is_alive.all())
        cosine = torch.cosine_similarity(state.last.features(), looks[state.serials], dim=1)
        assert bool((cosine >= chosen["drift_threshold"] - MARGIN).all())
        lost = torch.randperm(len(looks), generator=torch.Generator().manual_seed(dice + number))
        lost = lost[: dice % (len(looks) + 1)].sort().values
        state = state.expire(lost)
        assert torch.equal(state.is_alive, ~torch.isin(state.serials, lost))
        gone = torch.cat([gone, lost])


@quick
@given(seeds, options)
def test_causal_survivors_contain_the_offline_survivors(seed: int, chosen: dict[str, Any]) -> None:
    features = moving_field(seed, frames=FRAMES)
    causal, _ = SttmStreaming(**chosen)(features)
    offline = merge_video(
        features, **{name: chosen[name] for name in chosen if not name.startswith(("drift", "re"))}
    )
    kept = {tuple(box) for box in causal.boxes.tolist()}
    assert {tuple(box) for box in offline.boxes.tolist()} <= kept


@quick
@given(seeds, options)
def test_refresh_frames_emit_all_their_leaves(seed: int, chosen: dict[str, Any]) -> None:
    features = moving_field(seed, frames=FRAMES, jumps=0.0)
    every = 3
    tokens, _ = stream(SttmStreaming(**{**chosen, "refresh_every": every}), list(features.split(2)))
    leaves = merge_video(
        features,
        spatial_threshold=chosen["spatial_threshold"],
        temporal_threshold=None,
        root_level=chosen["root_level"],
    )
    for frame in range(0, FRAMES, every):
        assert torch.equal(
            tokens.boxes[tokens.boxes[:, 0] == frame], leaves.boxes[leaves.boxes[:, 0] == frame]
        )


def test_streams_of_the_property_tests_really_merge() -> None:
    chosen = {"spatial_threshold": 0.8, "temporal_threshold": 0.7}
    shares = [
        len(SttmStreaming(**chosen)(moving_field(seed, frames=FRAMES))[0]) / (FRAMES * 30)
        for seed in range(20)
    ]
    assert 0.1 < sum(shares) / len(shares) < 0.7


@quick
@given(seeds, options, cuts, st.integers(1, 4))
def test_repeating_the_last_frame_equals_showing_it_again(
    seed: int, chosen: dict[str, Any], sizes: list[int], frames: int
) -> None:
    reducer = SttmStreaming(**chosen)
    state: StreamState | None = None
    for clip in windows(features := moving_field(seed, frames=FRAMES), sizes):
        _, state = reducer(clip, state)
    assert state is not None
    repeated = reducer.repeated(state, frames)
    tokens, shown = reducer(features[-1:].expand(frames, -1, -1, -1), state)
    every = chosen["refresh_every"]
    if every and any(t % every == 0 for t in range(FRAMES, FRAMES + frames)):
        assert repeated is None
        return
    assert repeated is not None
    assert len(tokens) == 0
    for name, part in repeated.saved().items():
        torch.testing.assert_close(part, shown.saved()[name])
    for ours, wanted in zip(
        (*repeated.absorbed, *repeated.last_seen), (*shown.absorbed, *shown.last_seen), strict=True
    ):
        assert torch.equal(ours, wanted)
    assert reducer.repeated(state.expire(state.serials[:1]), frames) is None
