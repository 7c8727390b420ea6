"""How probable each option of an answer is: by its first token, or by all its tokens where some begin alike.

The options are branches of the tree of questions. So what they share, with one another and between equal questions, is
read once. Knows no queue.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stream_sttm.engine.answering.formats import Options, first_scores, probabilities
from stream_sttm.engine.answering.prompt_tree import Piece, PromptTree
from stream_sttm.engine.cache.suffix import SuffixCache
from stream_sttm.models.family import VideoLLM

_AT_ONCE = 64  # tokens whose logits are held at the same time
_END = -1  # stands for the tokens that end an answer


class OptionScoring:
    """Scores the options of R questions of a tree, which has been read into `suffix`.

    `paths` are the questions' nodes, and `logits` (R, V) those of each answer's first token.
    """

    def __init__(
        self,
        model: VideoLLM,
        tree: PromptTree,
        suffix: SuffixCache,
        paths: Sequence[Sequence[int]],
        options: Sequence[Options],
        logits: Tensor,
    ) -> None:
        self._model, self._tree, self._read = model, tree, suffix
        self._start = len(tree)
        self._suffix: SuffixCache | None = None  # allocated at the beginning of a step
        self._sizes = [len(each.options) for each in options]
        self._scores = _first_scores(options, logits)  # (options of all questions,)
        each = [
            (path, ids)
            for path, choice, row in zip(paths, options, logits.tolist(), strict=True)
            for ids in _likely_spellings(choice, row)
        ]
        branches = [(tree.branch(path, ids)[len(path) :], ids) for path, ids in each]
        jobs = sorted(
            (node, token, slot)
            for slot, (nodes, ids) in enumerate(branches)
            for node, token in zip(nodes, [*ids[1:], _END], strict=True)
        )
        self._job_nodes = [node for node, _, _ in jobs]
        self._jobs = torch.tensor(jobs, device=model.device)  # (J, 3)

    @property
    def is_done(self) -> bool:
        """Whether all options have been read."""
        return self._suffix is not None and self._suffix.length == len(self._tree)

    def read(self, size: int, run: Callable[[Piece, SuffixCache], Tensor]) -> None:
        """Read the next `size` tokens. `run` runs a piece of the tree and returns its hidden states (1, n, C)."""
        suffix = self._suffix
        if suffix is None:
            read = torch.arange(self._start, device=self._model.device)
            suffix = self._suffix = self._read.expand(
                read[None], room=len(self._tree) - self._start
            )
            del self._read
        start = suffix.length
        end = min(len(self._tree), start + size)
        model = self._model
        piece = self._tree.piece(start, end, len(model.layers), model.device, is_read_whole=True)
        hidden = run(piece, suffix)[0]
        for at in range(start, end, _AT_ONCE):
            stop = min(end, at + _AT_ONCE)
            self._add(at, stop, model.logits(hidden[at - start : stop - start]))

    def weights(self, temperature: float) -> list[list[float]]:
        """Return the probability of each option, question by question."""
        scores = torch.split(self._scores, self._sizes)
        return [probabilities(each, temperature).tolist() for each in scores]

    def _add(self, start: int, end: int, logits: Tensor) -> None:
        """Add what follows the nodes [start, end), whose logits (n, V) are given, to the options' scores."""
        jobs = self._jobs[bisect_left(self._job_nodes, start) : bisect_left(self._job_nodes, end)]
        nodes, tokens, slots = jobs.unbind(dim=1)
        logs, rows = logits.log_softmax(dim=-1), nodes - start
        ends = logs[:, sorted(self._model.eos)].logsumexp(dim=-1)
        follows = logs[rows, tokens.clamp(min=0)]
        self._scores.index_add_(0, slots, torch.where(tokens == _END, ends[rows], follows))


def first_weights(
    options: Sequence[Options | None], logits: Tensor, temperature: float
) -> dict[int, list[float]]:
    """Return the probability of each option, by row index, for rows that choose by the first token.

    Logits (B, V) are that token's.
    """
    rows_of: dict[int, list[int]] = {}
    for index, one in enumerate(options):
        if one is not None:
            rows_of.setdefault(id(one), []).append(index)
    weights: dict[int, list[float]] = {}
    for indices in rows_of.values():
        choice = options[indices[0]]
        assert choice is not None
        scores = first_scores(logits[indices], choice)
        weights.update(zip(indices, probabilities(scores, temperature).tolist(), strict=True))
    return weights


def _likely_spellings(options: Options, logits: Sequence[float]) -> list[tuple[int, ...]]:
    """Return of each option the spelling whose first token is the most probable."""
    return [max(option.spellings, key=lambda ids: logits[ids[0]]) for option in options.options]


def _first_scores(options: Sequence[Options], logits: Tensor) -> Tensor:
    """Return the score of each option's first token, question by question."""
    each = [
        max(logits_of[ids[0]] for ids in option.spellings)
        for choice, logits_of in zip(options, logits.tolist(), strict=True)
        for option in choice.options
    ]
    return torch.tensor(each, dtype=torch.float32, device=logits.device)
