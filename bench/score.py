"""From answer sheets to figures: accuracy by arm and kind, majority baselines, intervals, differences to unmerged.

Questions of one clip share its pictures, so intervals come from drawing whole clips anew (bootstrap), the same ones
for every arm; a difference is taken within each draw, since all arms were asked the same. Knows no engine.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.watching import Sheet

DRAWS = 2000
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the middle 95 % of what other draws of clips would have given."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Score:
    """One arm's figures; `tokens` is the share of the unmerged arm's visual tokens that its questions saw."""

    accuracy: Interval
    difference: Interval
    tokens: float
    seconds: float
    kinds: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Its part of the last line."""
        return {
            "accuracy": round(self.accuracy.value, 5),
            "tokens": round(self.tokens, 5),
            "interval": [round(self.accuracy.low, 5), round(self.accuracy.high, 5)],
            "difference": round(self.difference.value, 5),
            "difference_interval": [
                round(self.difference.low, 5),
                round(self.difference.high, 5),
            ],
            "seconds_per_answer": round(self.seconds, 6),
            "types": {kind: round(share, 5) for kind, share in self.kinds.items()},
        }


@dataclass(frozen=True, slots=True)
class Result:
    """A run's figures; `majority` is what always giving a kind's commonest answer would score."""

    scores: dict[str, Score]
    majority: dict[str, float]
    clips: int
    rounds: int
    questions: int


def score(sheets: Sequence[Sheet], *, against: str = "none", whole: float | None = None) -> Result:
    """Every arm's figures, in the order in which arms first appear.

    `against`: the arm that differences are taken to; `whole`: how many visual tokens are all, else as many as it saw.
    """
    by_arm: dict[str, list[Sheet]] = defaultdict(list)
    for sheet in sheets:
        by_arm[sheet.arm].append(sheet)
    clips = sorted({sheet.clip for sheet in sheets})
    weights = _draws(len(clips))
    tallies = {arm: _tally(own, clips) for arm, own in by_arm.items()}
    base = tallies[against]
    whole = whole or statistics.fmean(sheet.visual for sheet in by_arm[against])
    scores = {
        arm: Score(
            accuracy=_interval(weights, tallies[arm]),
            difference=_interval(weights, tallies[arm], base),
            tokens=statistics.fmean(sheet.visual for sheet in own) / whole,
            seconds=statistics.median(sheet.seconds for sheet in own),
            kinds=kinds(own),
        )
        for arm, own in by_arm.items()
    }
    asked = by_arm[against]
    return Result(
        scores, majority(asked), len(clips), len(asked), sum(len(sheet.items) for sheet in asked)
    )


def kinds(sheets: Iterable[Sheet]) -> dict[str, float]:
    """Accuracy by kind of question, in the kinds' order of name."""
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for sheet in sheets:
        for item, is_right in zip(sheet.items, sheet.right, strict=True):
            asked[item.kind] += 1
            right[item.kind] += is_right
    return {kind: right[kind] / asked[kind] for kind in sorted(asked)}


def majority(sheets: Iterable[Sheet]) -> dict[str, float]:
    """By kind: the share of questions whose right answer is the commonest one."""
    truths: dict[str, Counter[str]] = defaultdict(Counter)
    for sheet in sheets:
        for item in sheet.items:
            truths[item.kind][item.truth] += 1
    return {kind: max(truths[kind].values()) / truths[kind].total() for kind in sorted(truths)}


def _tally(sheets: Iterable[Sheet], clips: Sequence[str]) -> Floats:
    """(2, clips): right answers and questions of each clip."""
    place = {clip: index for index, clip in enumerate(clips)}
    tally = np.zeros((2, len(clips)))
    for sheet in sheets:
        tally[0, place[sheet.clip]] += sum(sheet.right)
        tally[1, place[sheet.clip]] += len(sheet.right)
    return tally


def _draws(clips: int) -> Floats:
    """(DRAWS + 1, clips): how often each clip is drawn; the first row is the clips as they are."""
    drawn = np.random.default_rng(0).multinomial(clips, [1 / clips] * clips, size=DRAWS)
    return np.vstack([np.ones(clips), drawn]).astype(np.float64)


def _interval(weights: Floats, tally: Floats, base: Floats | None = None) -> Interval:
    values = _shares(weights, tally)
    if base is not None:
        values = values - _shares(weights, base)
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return Interval(float(values[0]), float(low), float(high))


def _shares(weights: Floats, tally: Floats) -> Floats:
    right, asked = weights @ tally[0], weights @ tally[1]
    shares: Floats = np.divide(right, asked, out=np.full_like(right, np.nan), where=asked > 0)
    return shares


def table(result: Result) -> str:
    """Return the figures for people: a line per arm, then the majority baseline."""
    names = list(result.majority)
    width = [max(6, len(name)) for name in names]
    longest = max(len(arm) for arm in result.scores)
    head = "  ".join(name.rjust(w) for name, w in zip(names, width, strict=True))
    lines = [
        f"{'arm':{longest}} tokens  accuracy (95 %)        against none (95 %)    ms/answer  {head}"
    ]
    for arm, own in result.scores.items():
        parts = "  ".join(
            f"{100 * own.kinds.get(name, float('nan')):{w}.1f}"
            for name, w in zip(names, width, strict=True)
        )
        lines.append(
            f"{arm:{longest}} {100 * own.tokens:6.1f}  {_told(own.accuracy):22} {_told(own.difference, '+'):22} "
            f"{1e3 * own.seconds:9.1f}  {parts}"
        )
    parts = "  ".join(
        f"{100 * share:{w}.1f}" for share, w in zip(result.majority.values(), width, strict=True)
    )
    lines.append(f"{'majority':{longest}} {'':64}  {parts}")
    return "\n".join(lines)


def _told(interval: Interval, sign: str = "") -> str:
    return (
        f"{100 * interval.value:{sign}.1f} ({100 * interval.low:{sign}.1f} to"
        f" {100 * interval.high:{sign}.1f})"
    )
