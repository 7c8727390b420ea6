"""How long a piece of work took on its device. A device that runs behind the host is not waited for."""

from __future__ import annotations

from time import perf_counter
from typing import Self

import torch


class DeviceTimer:
    """Measures a `with` body. A device that runs behind the host is synchronized only when the time is read."""

    def __init__(self, device: torch.device) -> None:
        is_behind = device.type == "cuda"
        self._events: list[torch.cuda.Event] = [
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2 if is_behind else 0)
        ]
        self._seconds = 0.0

    def __enter__(self) -> Self:
        if self._events:
            self._events[0].record()
        self._seconds = -perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._seconds += perf_counter()
        if self._events:
            self._events[1].record()

    @property
    def seconds(self) -> float:
        """Seconds of the body, 0 where none ran."""
        if not self._events:
            return self._seconds
        begin, end = self._events
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000
