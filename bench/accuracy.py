"""What merging costs in truth: the streaming engine asked about what it saw, arm by arm, in one run.

    python -m bench.accuracy                     the whole table, on drawn worlds that no training has seen
    python -m bench.accuracy --quick             five arms, fewer questions
    python -m bench.accuracy --long              hour-long streams in caches too small for them
    python -m bench.accuracy --model FOLDER --questions FILE     the table for any checkpoint and question file

Every arm sees the same windows and is asked the same questions about the same seconds. `tokens` is the share of the
unmerged arm's visual tokens that a question sees in the layers from the merge on, the fresh view counted. Budgets
are reached by a search for thresholds on other streams. Intervals draw whole streams anew. Last line: JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.arms import BUDGETS, Ground, Recipe, ground, left_out, named, recipes
from bench.compare import compare
from bench.exam import CLIP_FRAMES, DrawnStream
from bench.film import Film
from bench.process_pool import SMALL, ProcessPool, crew, model_of
from bench.questions_file import read_questions
from bench.score import Result, score, table
from bench.small_caches import EVERY, FIFO, report, small_caches
from stream_sttm.errors import StreamSTTMError
from stream_sttm.models.family import VideoLLM

QUICK = ("none", "sttm_50", "sttm_30", "sttm_15", "random_30", "frames_30")
FIRST, CALIBRATION = 5_000_000, 4_000_000  # first seeds; training stays below both
CALIBRATED = 800  # windows, about, that thresholds are found on, in 6 to 24 worlds
GAP = 12  # rounds that a memory's length of stream is asked, each about a span of its own
FEW = 4  # videos of a question file that thresholds are found on
LATEST = 3000.0  # seconds into a world at which a stream begins, at most


def main(words: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; returns 2 with one line on stderr where that can't be done."""
    options = _options(words)
    try:
        films = _films(options) if options.questions else []
        model = model_of(options.model)
        with crew(options.model, options.jobs or _jobs(model)) as workers:
            if options.long:
                _long(workers, model, options)
            elif films:
                _filmed(workers, model, options, films)
            else:
                _drawn(workers, model, options)
    except StreamSTTMError as error:
        print(f"bench.accuracy: {error}", file=sys.stderr)
        return 2
    return 0


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="five arms, fewer questions")
    parser.add_argument("--long", action="store_true", help="hour-long streams in small caches")
    parser.add_argument("--model", default="demo", help="demo, a folder or a hub id")
    parser.add_argument("--questions", type=Path, help="StreamingBench or OVO-Bench JSON")
    parser.add_argument("--videos", type=Path, help="folder of its videos, if not the file's own")
    parser.add_argument("--arms", default="", help="only these, separated by commas")
    parser.add_argument("--budgets", type=_counts, help="per cent of the tokens (50,30,15,5)")
    parser.add_argument("--jobs", type=_count, help="worker processes; default: one a core")
    parser.add_argument("--streams", type=_count, help="how many worlds (20; 8 quick; 4 long)")
    parser.add_argument("--rounds", type=_count, default=15, help="rounds of questions per world")
    parser.add_argument("--seeds", type=_count, help="draws of the random arms (2; 1 quick)")
    parser.add_argument("--calibrate", type=_count, help="worlds that thresholds are found on")
    parser.add_argument("--first", type=int, default=FIRST, help="seed of the first world")
    parser.add_argument("--fps", type=_positive, default=2.0, help="frames per second")
    parser.add_argument("--side", type=_count, default=192, help="pixels of a drawn picture's side")
    parser.add_argument("--reach", type=_positive, help="seconds a memory holds; default: model's")
    parser.add_argument("--minutes", type=_positive, default=60.0, help="length of --long streams")
    parser.add_argument("--cache", type=_positive, default=0.3, help="--long: share that fits")
    options = parser.parse_args(words)
    if options.streams is None:
        options.streams = 4 if options.long else 8 if options.quick else 20
    if options.seeds is None:
        options.seeds = 1 if options.quick else 2
    return options


def _jobs(model: VideoLLM) -> int:
    """Return how many processes to use: one per core for a small model, else one."""
    is_small = model.parameters < SMALL and model.device.type == "cpu"
    return (os.cpu_count() or 1) if is_small else 1


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return number


def _counts(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return number


def _drawn(workers: ProcessPool, model: VideoLLM, options: argparse.Namespace) -> None:
    """Print the table on drawn worlds."""
    square = (options.side, options.side)
    floor = ground(model, options.fps, square, options.reach)
    shown = drawn(options, floor, options.first, options.streams)
    calibration = _calibration(options, floor)
    sheets, missed = compare(workers, _wanted(model, options), floor, calibration, shown)
    _tell(score(sheets), model, floor, missed + left_out(model))


def _films(options: argparse.Namespace) -> list[Film]:
    """Return the question file's videos, each with what is asked of it."""
    films, count = read_questions(options.questions, videos=options.videos, fps=options.fps)
    if count:
        line = f"{options.questions}: {count} items are no multiple choice and were left out"
        print(f"bench.accuracy: {line}", file=sys.stderr)
    return films


def _filmed(
    workers: ProcessPool, model: VideoLLM, options: argparse.Namespace, films: Sequence[Film]
) -> None:
    """Print the table on a question file. Thresholds are found on its own videos, which shows them no answer."""
    largest = max((film.size() for film in films), key=math.prod)
    floor = ground(model, options.fps, largest, options.reach)
    sheets, missed = compare(workers, _wanted(model, options), floor, films[:FEW], films)
    _tell(score(sheets), model, floor, missed + left_out(model))


def _long(workers: ProcessPool, model: VideoLLM, options: argparse.Namespace) -> None:
    """Long streams in small caches."""
    floor = ground(model, options.fps, (options.side, options.side), options.reach)
    seconds = 60 * options.minutes
    rounds = 1 + int(max(0.0, seconds - floor.reach) / EVERY)
    shown = [
        DrawnStream(
            seed, 0.0, options.fps, floor.reach, floor.span, EVERY, rounds, options.side, True
        )
        for seed in range(options.first, options.first + options.streams)
    ]
    wanted = small_caches(model, floor, options.cache)
    calibration = _calibration(options, floor)
    sheets, missed = compare(workers, wanted, floor, calibration, shown)
    result = score(sheets, against=FIFO, whole=floor.frames * floor.cells)
    text, extra = report(result, sheets, seconds)
    print(text)
    _tell(result, model, floor, missed, extra)


def drawn(options: argparse.Namespace, floor: Ground, first: int, count: int) -> list[DrawnStream]:
    """Stretches of `count` worlds, each begun at its own time; GAP rounds to a memory."""
    return [
        DrawnStream(
            seed,
            round(random.Random(seed).uniform(0, LATEST), 1),
            options.fps,
            floor.reach,
            floor.span,
            floor.reach / GAP,
            options.rounds,
            options.side,
        )
        for seed in range(first, first + count)
    ]


def _calibration(options: argparse.Namespace, floor: Ground) -> list[DrawnStream]:
    """Worlds that nothing is asked about, each twice as long as a memory; the shorter, the more."""
    count = int(CALIBRATED * CLIP_FRAMES / options.fps / floor.reach / 2)
    count = options.calibrate or min(24, max(6, count))
    return [replace(stream, rounds=1 + GAP) for stream in drawn(options, floor, CALIBRATION, count)]


def _wanted(model: VideoLLM, options: argparse.Namespace) -> list[Recipe]:
    every = recipes(model, seeds=options.seeds, budgets=options.budgets or BUDGETS)
    if options.arms:
        return named(every, options.arms.split(","))
    return named(every, QUICK) if options.quick else every


def _tell(
    result: Result,
    model: VideoLLM,
    floor: Ground,
    remarks: Sequence[str],
    extra: dict[str, dict[str, Any]] | None = None,
) -> None:
    """Print the table, what it rests on, and the last line."""
    base = next(iter(result.scores.values()))
    print(table(result))
    print(
        f"{result.questions} questions in {result.rounds} rounds about {result.clips} streams; model {model.name}, "
        f"{len(model.layers)} layers; memory {floor.reach:g} s: {floor.frames} frames of {floor.cells} tokens"
    )
    for line in remarks:
        print(line)
    arms = {
        name: own.as_dict() | (extra or {}).get(name, {}) for name, own in result.scores.items()
    }
    types = {
        kind: {"accuracy": base.kinds[kind], "majority": share}
        for kind, share in result.majority.items()
    }
    print(json.dumps({"arms": arms, "types": types, "questions": result.questions}))


if __name__ == "__main__":
    sys.exit(main())
