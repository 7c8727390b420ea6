"""Does a memory stay what it is for weeks? Size, cost and positions over 100,000 windows, then truth over hours.

    python -m bench.longrun [--windows 100000] [--streams 4] [--minutes 60] [--reach 180]

First part, time compressed: the features of a drawn scene, seen once and then again and again with fresh noise, go
straight into one stream's memory, for every retention policy. Resident memory is read when what the C library holds
free has been given back, as the service does once a minute. Slopes are fitted after the first tenth, with their
standard error and the correlation of neighbouring residuals, of which that error counts on none; the cost of a window
is the middle one of the last tenth against the second, measured in turn with a memory that is always young, so that a
machine that slows down does not count. Second part: `bench.accuracy --long`.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench import accuracy
from stream_sttm.config.settings import MemorySettings, ReducerSettings, RetentionSettings
from stream_sttm.engine import attention
from stream_sttm.engine.plan import MemoryPlan, plan_for
from stream_sttm.engine.session import StreamSession
from stream_sttm.models import load_model
from stream_sttm.models.family import VideoLLM
from stream_sttm.reducers import build_reducer
from stream_sttm.retention import POLICIES
from stream_sttm.sources.scene import Scene
from workers import malloc_trim

FPS, SIDE, LOOP = 2.0, 192, 300  # windows of the scene that are gone through again and again
SAMPLES = 200  # of size and cost
YOUNG, SPARED = 200, 5  # the young memory gets every fifth window, and is begun anew after so many
TOKENS = 256  # of a memory: small, so that it is full and evicts all the time


@dataclass
class Steadiness:
    """One policy's SAMPLES, by windows so far; their room is taken at the start, so that they don't show up in them."""

    windows: NDArray[np.float64] = field(default_factory=lambda: np.ones(SAMPLES))
    resident: NDArray[np.float64] = field(default_factory=lambda: np.ones(SAMPLES))
    old: NDArray[np.float64] = field(default_factory=lambda: np.ones(SAMPLES))
    young: NDArray[np.float64] = field(default_factory=lambda: np.ones(SAMPLES))
    highest: int = 0

    def slope(self) -> tuple[float, float, float]:
        """Bytes of the process per window, the standard error, and the residuals' correlation with the next.

        After the first tenth, by ordinary least squares, whose error holds where residuals don't hang together.
        """
        x, y = self.windows[SAMPLES // 10 :], self.resident[SAMPLES // 10 :]
        x = x - x.mean()
        slope = float((x * y).sum() / (x * x).sum())
        rest = y - y.mean() - slope * x
        error = float(np.sqrt((rest**2).sum() / max(1, len(x) - 2) / (x * x).sum()))
        return slope, error, float((rest[1:] * rest[:-1]).sum() / max((rest**2).sum(), 1e-9))

    def cost_ratio(self) -> float:
        """Return the last tenth's cost of a window against the second tenth's, each against the young memory's then."""
        tenth, ratios = SAMPLES // 10, self.old / self.young
        return float(np.median(ratios[-tenth:]) / np.median(ratios[tenth : 2 * tenth]))

    def by_tenth(self) -> list[float]:
        """Resident bytes at the end of each tenth."""
        return [float(size) for size in self.resident[SAMPLES // 10 - 1 :: SAMPLES // 10]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=100_000)
    parser.add_argument("--policies", default=",".join(POLICIES), help="separated by commas")
    parser.add_argument("--streams", type=int, default=4, help="worlds of the second part; 0: none")
    parser.add_argument("--minutes", type=float, default=60.0, help="length of each")
    parser.add_argument("--reach", type=float, default=180.0, help="seconds that are asked about")
    arguments = parser.parse_args()
    if arguments.windows < 10 * SAMPLES:
        parser.error(f"--windows: at least {10 * SAMPLES} are needed for a slope")
    torch.set_num_threads(1)  # as the service does for a model this small
    model = load_model("demo")
    attention.register()
    model.use_attention(attention.NAME)
    looks = list(_looks(model))
    result = {
        name: steady(model, looks, name, arguments.windows)
        for name in arguments.policies.split(",")
    }
    print(json.dumps({"steady": result}))
    if arguments.streams:
        asked = {name: getattr(arguments, name) for name in ("streams", "minutes", "reach")}
        words = [word for name, value in asked.items() for word in (f"--{name}", str(value))]
        sys.exit(accuracy.main(["--long", *words]))


def steady(model: VideoLLM, looks: list[Tensor], policy: str, windows: int) -> dict[str, Any]:
    """Run one policy for so many windows, and say in words and numbers what changed."""
    plan = plan_for(
        model,
        ReducerSettings(),
        MemorySettings(window_tokens=TOKENS, retention=RetentionSettings(name=policy)),
    )
    old, young = _session(model, plan), _session(model, plan)
    found, noise = Steadiness(), torch.Generator().manual_seed(0)
    every = windows // SAMPLES
    costs: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for index in range(windows):
            if index % (YOUNG * SPARED) == 0:
                young = _session(model, plan)
            look = looks[index % len(looks)]
            look = look + 0.02 * look.std() * torch.randn(look.shape, generator=noise)
            for session, spent in zip((old, young), costs, strict=True):
                if session is young and index % SPARED:
                    continue
                started = time.perf_counter()
                session.append(look, [index / FPS] * len(look))
                spent.append(time.perf_counter() - started)
            found.highest = max(found.highest, _highest(old))
            place, rest = divmod(index + 1, every)
            if rest == 0 and place <= SAMPLES:
                gc.collect()
                malloc_trim.trim()
                found.windows[place - 1], found.resident[place - 1] = index + 1, _resident_bytes()
                found.old[place - 1], found.young[place - 1] = map(statistics.median, costs)
                for spent in costs:
                    spent.clear()
    slope, error, kept = found.slope()
    grown = "  ".join(f"{size / 1e6:.3f}" for size in found.by_tenth())
    print(f"{policy:8} resident MB after each tenth: {grown}")
    print(
        f"{policy:8} {windows} windows: resident {found.resident[-1] / 1e6:.1f} MB, slope "
        f"{slope:+.2f} +- {error:.2f} bytes a window (residuals correlate {kept:+.2f}), "
        f"cost of a window late/early {found.cost_ratio():.3f}, cache {old.cache.nbytes / 1e6:.2f} MB, "
        f"highest position {found.highest} of {model.context}"
    )
    return {
        "slope_bytes_per_window": slope,
        "slope_standard_error": error,
        "residual_correlation": kept,
        "resident_bytes_by_tenth": found.by_tenth(),
        "cost_ratio": found.cost_ratio(),
        "highest_position": found.highest,
        "most_positions": model.context,
        "cache_bytes": old.cache.nbytes,
    }


def _looks(model: VideoLLM) -> Iterator[Tensor]:
    """Return the features of a drawn scene's first windows."""
    scene = Scene(5)
    for index in range(LOOP):
        times = [(2 * index + frame) / FPS for frame in range(2)]
        frames = torch.from_numpy(np.stack([scene.render(at, SIDE) for at in times]))
        with torch.inference_mode():
            yield model.encode(model.preprocess(frames.permute(0, 3, 1, 2)))


def _session(model: VideoLLM, plan: MemoryPlan) -> StreamSession:
    tuned = model.tuned
    reducer = build_reducer(
        "sttm_streaming",
        {
            "spatial_threshold": tuned.spatial_threshold,
            "temporal_threshold": tuned.temporal_threshold,
        },
    )
    return StreamSession(model, reducer, plan, stream="cam", fps=FPS)


def _highest(session: StreamSession) -> int:
    """Return the highest position that any key is stored at."""
    return max(
        group.pinned + int(group.table.times[-1]) - group.offset
        for group in session.cache.groups
        if len(group)
    )


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
