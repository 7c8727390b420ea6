"""Worker processes, one thread and one model each, that take pieces of a run in turn; progress goes to stderr.

One job is done in this very process. Knows nothing of what the pieces are.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TypeVar

import torch

from stream_sttm.models import load_model
from stream_sttm.models.family import VideoLLM

Piece = TypeVar("Piece")
Made = TypeVar("Made")
SMALL = 50_000_000  # weights; more threads would only slow down a model with fewer

_models: dict[
    str, VideoLLM
] = {}  # a worker process has its model here; a pool offers no other place


class ProcessPool:
    """Runs `work(model, piece)` for each of many pieces; leaves no process behind."""

    def __init__(self, source: str, pool: ProcessPoolExecutor | None) -> None:
        self._source, self._pool = source, pool

    def do(
        self, name: str, work: Callable[[VideoLLM, Piece], Made], pieces: Sequence[Piece]
    ) -> list[Made]:
        """Return what came of every piece, in their order."""
        started, made = time.monotonic(), dict[int, Made]()
        for place, result in self._results(work, pieces):
            made[place] = result
            spent = time.monotonic() - started
            left = spent / len(made) * (len(pieces) - len(made))
            line = f"{name}: {len(made)} of {len(pieces)}, {spent:.0f} s, about {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)
        return [made[place] for place in range(len(pieces))]

    def _results(
        self, work: Callable[[VideoLLM, Piece], Made], pieces: Sequence[Piece]
    ) -> Iterator[tuple[int, Made]]:
        if self._pool is None:
            for place, piece in enumerate(pieces):
                yield place, _do(self._source, work, piece)
            return
        futures: dict[Future[Made], int] = {
            self._pool.submit(_do, self._source, work, piece): place
            for place, piece in enumerate(pieces)
        }
        for future in as_completed(futures):
            yield futures[future], future.result()


@contextmanager
def crew(source: str, jobs: int) -> Iterator[ProcessPool]:
    """`jobs` workers with the model `source`; whoever leaves early does not wait for work that has not begun."""
    if jobs == 1:
        yield ProcessPool(source, None)
        return
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        try:
            yield ProcessPool(source, pool)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def model_of(source: str) -> VideoLLM:
    """Return this process's one copy of a model."""
    if source not in _models:
        model = load_model(source)
        if model.parameters < SMALL:
            torch.set_num_threads(1)
        _models[source] = model
    return _models[source]


def _do(source: str, work: Callable[[VideoLLM, Piece], Made], piece: Piece) -> Made:
    return work(model_of(source), piece)
