"""How fast a video's tokens are merged: our dense form against the straightforward one, alternating in one process.

The straightforward form is written here from the method's description: nodes gathered level by level, every leaf
of a frame compared with every leaf of the next in a padded matrix, labels passed along links until none changes.
Both must return the same tokens. The streaming arms merge the same frames window by window. Last line: JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stream_sttm.reducers.sttm import merge_video
from stream_sttm.reducers.sttm_streaming import SttmStreaming
from stream_sttm.visual_tokens import VisualTokens

SPATIAL, TEMPORAL, ROOT_LEVEL = 0.85, 0.65, 1
WINDOW, GUARD = 8, 0.5
TEXTURED = (
    0.05  # share of cells with a look of their own; spatial merging then keeps about two thirds
)


def scene(frames: int, side: int, channels: int, device: str) -> Tensor:
    """(T, H, W, C) features as of a fixed camera: smooth and textured surfaces, sensor noise, things that move."""
    random = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, channels, generator=random)

    surfaces = F.interpolate(noise(1, 4, 4).permute(0, 3, 1, 2), size=(side, side), mode="nearest")
    still = surfaces[0].permute(1, 2, 0) + 0.15 * noise(side, side)
    is_textured = torch.rand(side, side, 1, generator=random) < TEXTURED
    still = torch.where(is_textured, noise(side, side), still)
    video = still.expand(frames, -1, -1, -1) + 0.2 * noise(frames, 1, 1)
    size = max(side // 3, 1)
    for speed, lane in ((2, 0), (3, side // 2)):
        look = noise(size, size)
        for t in range(frames):
            left = (t // speed) % (side - size + 1)
            look = 0.75 * look + 0.66 * noise(size, size)
            video[t, lane : lane + size, left : left + size] = look
    for t in range(frames):
        video[t] += 0.2 * noise(side, side)
    return video.contiguous().to(device)


# The straightforward form.


def plain_merge(features: Tensor) -> VisualTokens:
    """STTM as one would first write it."""
    looks, boxes = plain_leaves(features)
    frames = features.shape[0]
    counts = torch.bincount(boxes[:, 0], minlength=frames)
    slots = torch.arange(int(counts.max()), device=boxes.device)
    is_leaf = slots < counts[:, None]
    padded = looks.new_zeros(frames, len(slots), looks.shape[1])
    padded[is_leaf] = F.normalize(looks, dim=1)
    ids = torch.zeros_like(is_leaf, dtype=torch.int64)
    ids[is_leaf] = torch.arange(len(boxes), device=boxes.device)
    similarity = padded[1:] @ padded[:-1].transpose(1, 2)
    corners = boxes[ids]
    later, earlier = corners[1:, :, None], corners[:-1, None]
    overlap = (later[..., 1:3] < earlier[..., 3:]).all(-1) & (
        earlier[..., 1:3] < later[..., 3:]
    ).all(-1)
    link = (similarity >= TEMPORAL) & overlap & is_leaf[1:, :, None] & is_leaf[:-1, None]
    step, late, early = link.nonzero(as_tuple=True)
    label = plain_labels(ids[step + 1, late], ids[step, early], len(boxes))
    roots, group = torch.unique(label, return_inverse=True)
    areas = (boxes[:, 3] - boxes[:, 1]) * (boxes[:, 4] - boxes[:, 2])
    members = torch.bincount(group)
    total = looks.new_zeros(len(roots), looks.shape[1]).index_add_(0, group, looks)
    sizes = torch.zeros_like(roots).index_add_(0, group, areas)
    return VisualTokens(total / members[:, None], boxes[roots], sizes)


def plain_labels(first: Tensor, second: Tensor, count: int) -> Tensor:
    """Return the least id that each leaf is linked to, passed on from link to link."""
    label = torch.arange(count, device=first.device)
    while True:
        lower = label.scatter_reduce(0, first, label[second], "amin")
        lower = lower.scatter_reduce(0, second, lower[first], "amin")
        if torch.equal(lower, label):
            return label
        label = lower


def plain_leaves(features: Tensor) -> tuple[Tensor, Tensor]:
    """Leaf features and boxes, from the roots down, gathering the children of the nodes that are left."""
    frames, _, _, channels = features.shape
    levels = [features]
    while min(levels[0].shape[1:3]) > 2:
        odd = (levels[0].shape[1] % 2, levels[0].shape[2] % 2)
        pooled = F.avg_pool2d(
            levels[0].permute(0, 3, 1, 2), 2, padding=odd, count_include_pad=False
        )
        levels.insert(0, pooled.permute(0, 2, 3, 1))
    levels = levels[ROOT_LEVEL:]
    height, width = levels[0].shape[1:3]
    axes = (torch.arange(side, device=features.device) for side in (frames, height, width))
    nodes = torch.cartesian_prod(*axes)
    looks, spots = [], []
    for depth, level in enumerate(levels):
        parent = level[nodes[:, 0], nodes[:, 1], nodes[:, 2]]
        if depth + 1 == len(levels):
            is_whole = torch.ones(len(nodes), dtype=torch.bool, device=nodes.device)
        else:
            children, exists = plain_children(nodes, levels[depth + 1].shape[1:3])
            t, y, x = children.clamp(min=0).unbind(2)
            child = levels[depth + 1][t, y, x]
            cosine = F.cosine_similarity(child, parent[:, None], dim=2)
            is_whole = (cosine >= SPATIAL).logical_or(~exists).all(1)
        looks.append(parent[is_whole])
        spots.append(plain_boxes(nodes[is_whole], [level.shape[1:3] for level in levels[depth:]]))
        if depth + 1 < len(levels):
            nodes = children[~is_whole][exists[~is_whole]]
    boxes = torch.cat(spots)
    side = features.shape[1:3]
    order = ((boxes[:, 0] * side[0] + boxes[:, 1]) * side[1] + boxes[:, 2]).argsort()
    return torch.cat(looks).view(-1, channels)[order], boxes[order]


def plain_children(nodes: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Return the four children (t, y, x) of each node, and which of them lie in the grid."""
    steps = torch.cartesian_prod(torch.arange(2), torch.arange(2)).to(nodes.device)
    odd = torch.tensor([side % 2 for side in shape], device=nodes.device)
    spots = nodes[:, None, 1:] * 2 - odd + steps
    frames = nodes[:, None, :1].expand(-1, 4, -1)
    return torch.cat([frames, spots], 2), (spots >= 0).all(2)


def plain_boxes(nodes: Tensor, shapes: list[torch.Size]) -> Tensor:
    """(t, y0, x0, y1, x1) of nodes on a grid of the first shape, in cells of the last."""
    start, end = nodes[:, 1:], nodes[:, 1:] + 1
    for shape in shapes[1:]:
        odd = torch.tensor([side % 2 for side in shape], device=nodes.device)
        start, end = (start * 2 - odd).clamp(min=0), end * 2 - odd
    return torch.cat([nodes[:, :1], start, end], 1)


# The arms.


def merge(features: Tensor) -> VisualTokens:
    """Ours, offline."""
    return merge_video(
        features, spatial_threshold=SPATIAL, temporal_threshold=TEMPORAL, root_level=ROOT_LEVEL
    )


def stream(features: Tensor, window: int, drift_threshold: float) -> VisualTokens:
    """Ours, causal, so many frames at a time; every token as emitted, its size as it is in the end."""
    reducer = SttmStreaming(SPATIAL, TEMPORAL, ROOT_LEVEL, drift_threshold)
    state, parts = None, []
    sizes = torch.empty(0, dtype=torch.int64, device=features.device)
    for clip in torch.split(features, window):
        tokens, state = reducer(clip, state)
        sizes = torch.cat([sizes.index_add(0, *state.absorbed), tokens.sizes])
        parts.append(tokens)
    looks, boxes = (torch.cat([getattr(p, name) for p in parts]) for name in ("features", "boxes"))
    return VisualTokens(looks, boxes, sizes)


def timed(run: Callable[[], VisualTokens], device: str) -> float:
    """Seconds of one run, result thrown away."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak(run: Callable[[], VisualTokens], device: str) -> int | None:
    """Bytes that one run adds to what is held before it; on a CPU from Linux's resident high-water mark."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not clear.exists():
        return None
    ctypes.CDLL(None).malloc_trim(
        0
    )  # memory that earlier runs left with the allocator counts as used again
    clear.write_text("5")

    def resident() -> dict[str, int]:
        lines = (line.split() for line in status.read_text().splitlines())
        return {line[0]: int(line[1]) * 1024 for line in lines if line[0].startswith("Vm")}

    before = resident()["VmRSS:"]
    run()
    return resident()["VmHWM:"] - before


def check(ours: VisualTokens, plain: VisualTokens) -> None:
    """Raise AssertionError unless both arms return the same tokens."""
    torch.testing.assert_close(ours.boxes, plain.boxes, rtol=0, atol=0)
    torch.testing.assert_close(ours.sizes, plain.sizes, rtol=0, atol=0)
    torch.testing.assert_close(ours.features, plain.features, rtol=1e-4, atol=1e-4)


def compare(features: Tensor, device: str, runs: int) -> dict[str, Any]:
    """Every arm's median time, peak memory and tokens; raises AssertionError where two arms should agree and don't."""
    arms: dict[str, Callable[[], VisualTokens]] = {
        "plain": lambda: plain_merge(features),
        "ours": lambda: merge(features),
        "streaming": lambda: stream(features, WINDOW, -1.0),
        "streaming_guarded": lambda: stream(features, WINDOW, GUARD),
    }
    results = {name: run() for name, run in arms.items()}
    check(results["ours"], results["plain"])
    check(results["streaming_guarded"], stream(features, features.shape[0], GUARD))
    peaks = {name: peak(run, device) for name, run in arms.items()}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(runs):
        for name, run in arms.items():
            seconds[name].append(timed(run, device))
    median = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "bench": "merging",
        "shape": list(features.shape),
        "device": device,
        "threads": torch.get_num_threads(),
        "runs": runs,
        "median_ms": {name: round(value * 1e3, 2) for name, value in median.items()},
        "ratio": round(median["plain"] / median["ours"], 2),
        "cells": features[..., 0].numel(),
        "leaves": len(plain_leaves(features)[0]),
        "tokens": {name: len(result) for name, result in results.items()},
        "peak_bytes": peaks,
    }


def main() -> None:
    """Run all arms and print their times, ratios and memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--side", type=int, default=14)
    parser.add_argument("--channels", type=int, default=3584)
    parser.add_argument("--runs", type=int, default=7)
    # One by default: threads that wait for each other measure how busy the machine is.
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    features = scene(chosen.frames, chosen.side, chosen.channels, chosen.device)
    with torch.inference_mode():
        found = compare(features, chosen.device, chosen.runs)
    print(
        f"{'x'.join(map(str, features.shape))} float32 on {chosen.device}, {chosen.threads} threads:"
        f" {found['cells']} cells, {found['leaves']} leaves"
    )
    for name, milliseconds in found["median_ms"].items():
        held = found["peak_bytes"][name]
        print(
            f"{name:18} {milliseconds:8.1f} ms  {found['median_ms']['plain'] / milliseconds:5.1f}x"
            f"  {found['tokens'][name]:6d} tokens"
            + (f"  peak +{held / 2**20:.0f} MiB" if held is not None else "")
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
