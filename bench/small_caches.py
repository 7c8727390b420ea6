"""Hour-long streams in caches of one size: what merging remembers that first-in-first-out has dropped.

Every arm is asked the same questions about the same `span`, as far back as a memory with room for all of it would
reach; those whose cache ends sooner have to do without. The `recall` arms have a third of the others' room, so that
most of the span has left it, and an archive of the span. Figures of questions about now, by stream age and in all, of
those about before, and of needles by how long ago.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bench.arms import LAST, Ground, Recipe
from bench.exam import NEEDLES, needle
from bench.score import Result
from bench.watching import Sheet
from stream_sttm.models.family import VideoLLM
from stream_sttm.retention import POLICIES
from stream_sttm.scene.truth import PRESENT
from stream_sttm.types import Recall

FIFO = "fifo"
EVERY = 20.0  # seconds between two rounds
PARTS = 6  # of the stream's age
RECALLING: tuple[Recall, ...] = ("never", "auto", "always")
SLACK = 0.85  # share of the small cache that merging aims to fill; what moves fills the rest


def small_caches(model: VideoLLM, ground: Ground, share: float) -> list[Recipe]:
    """Return the arms, all in `share` of the room: unmerged, merged by policy, in 8 bits, pruned; the last frames."""
    tuned = model.tuned
    room = ground.frames * share
    fifo = Recipe(FIFO, "none", 1.0, 0, capacity=room)
    merged = Recipe(
        "sttm",
        "sttm",
        share * SLACK,
        min(tuned.at_layer, len(model.layers) - 1),
        tuned.size_bias,
        tuned.fresh_frames,
        tuned.positions,
        capacity=room,
    )
    policies = [
        replace(merged, name=f"sttm_{name}", retention=name) for name in POLICIES if name != "fifo"
    ]
    pruned = [replace(merged, name="sttm_pruned", prune_shallow=True)] if merged.at_layer else []
    last = replace(fifo, name=f"last_{LAST}", capacity=max(1, LAST // model.frames_per_token))
    smaller = replace(merged, capacity=room / 3)
    recalling = [replace(smaller, name=f"recall_{when}", recall=when) for when in RECALLING]
    eight_bits = replace(merged, name="sttm_int8", kv="int8")
    return [fifo, merged, *policies, eight_bits, *pruned, last, *recalling]


def by_age(sheets: Sequence[Sheet], seconds: float) -> dict[str, list[float]]:
    """Each arm's accuracy on questions about now, in equal parts of the stream's age."""
    return {
        arm: [shares.get(part, float("nan")) for part in range(PARTS)]
        for arm, shares in _shares(
            (sheet.arm, min(PARTS - 1, int(sheet.at / seconds * PARTS)), right)
            for sheet in sheets
            for item, right in zip(sheet.items, sheet.right, strict=True)
            if item.kind in PRESENT
        ).items()
    }


def by_time(sheets: Sequence[Sheet]) -> dict[str, dict[str, float]]:
    """Each arm's accuracy on questions about now, and about before."""
    return _shares(
        (sheet.arm, "now" if item.kind in PRESENT else "before", right)
        for sheet in sheets
        for item, right in zip(sheet.items, sheet.right, strict=True)
    )


def by_needle(sheets: Sequence[Sheet]) -> dict[str, dict[int, float]]:
    """Each arm's accuracy on what was last seen about so many seconds ago."""
    return _shares(
        (sheet.arm, mark, right)
        for sheet in sheets
        for item, right in zip(sheet.items, sheet.right, strict=True)
        if (mark := needle(item.age)) is not None
    )


def needles(sheets: Sequence[Sheet], arm: str) -> dict[int, int]:
    """How many needles of each age an arm was asked about."""
    asked = Counter(needle(item.age) for s in sheets if s.arm == arm for item in s.items)
    return {mark: asked[mark] for mark in NEEDLES}


def _shares(marks: Any) -> dict[str, dict[Any, float]]:
    """Share of true by arm and bucket, of (arm, bucket, is right)."""
    counts: dict[str, dict[Any, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for arm, bucket, is_right in marks:
        counts[arm][bucket][0] += is_right
        counts[arm][bucket][1] += 1
    return {
        arm: {bucket: right / asked for bucket, (right, asked) in buckets.items()}
        for arm, buckets in counts.items()
    }


def report(result: Result, sheets: Sequence[Sheet], seconds: float) -> tuple[str, dict[str, Any]]:
    """Return the two tables, and what the last line says of each arm beside its score."""
    ages, found, times = by_age(sheets, seconds), by_needle(sheets), by_time(sheets)
    asked = needles(sheets, next(iter(result.scores)))
    part = seconds / PARTS / 60
    head = "".join(f"{part * (index + 1):6.0f}m" for index in range(PARTS))
    head += f"{'now':>8}{'before':>8}" + "".join(f"{mark:7d}s" for mark in NEEDLES)
    lines = [
        "accuracy about now by age of the stream (up to), about now and before, then needles by how long ago",
        f"{'arm':12}{head}",
    ]
    for arm in result.scores:
        cells = "".join(f"{100 * share:7.1f}" for share in ages[arm])
        cells += "".join(
            f"{100 * times[arm].get(time, float('nan')):8.1f}" for time in ("now", "before")
        )
        cells += "".join(
            f"{100 * found.get(arm, {}).get(mark, float('nan')):8.1f}" for mark in NEEDLES
        )
        lines.append(f"{arm:12}{cells}")
    lines.append(f"{'asked':12}{'':{7 * PARTS + 16}}" + "".join(f"{n:8d}" for n in asked.values()))
    extra = {
        arm: {
            "by_age": [None if share != share else round(share, 5) for share in ages[arm]],
            "by_time": {time: round(share, 5) for time, share in sorted(times[arm].items())},
            "needles": {str(mark): round(v, 5) for mark, v in sorted(found.get(arm, {}).items())},
        }
        for arm in result.scores
    }
    return "\n".join(lines), extra
