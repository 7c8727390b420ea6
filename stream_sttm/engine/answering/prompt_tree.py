"""Several prompts read as one tree: tokens with the same text before them are one node, read once for all.

A token's state behind any layer is a function of the memory and of the prompt up to it. So prompts that begin alike
share their beginnings, as all do with a chat template, and nothing is padded. Tree attention as in SpecInfer
(https://arxiv.org/abs/2305.09781), for questions in place of guesses. Knows no cache and no model.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stream_sttm.engine.attention import PrefixQueries


@dataclass(frozen=True, slots=True)
class Piece:
    """The n nodes [start, end) of a tree of B prompts, to be read in one step.

    - `ids` and `depths` (n,): their token ids, and their depths in the tree.
    - `before` (M,): earlier nodes that any of them stands behind.
    - `sees` (n, M + n): which of those and of one another each node stands behind.
    - `last` (B,): where in the piece each prompt's last token is, 0 where it is in another piece.
    - `ends` (B,): whether the prompt's last token is in this piece.
    - `prefix_queries`: by layer, which nodes attend to the memory.
    """

    ids: Tensor
    depths: Tensor
    before: Tensor
    sees: Tensor
    last: Tensor
    ends: Tensor
    prefix_queries: tuple[PrefixQueries | None, ...]


class PromptTree:
    """The prompts of one batch. Nodes are numbered so that each comes after those that it stands behind."""

    def __init__(self, prompts: Sequence[Sequence[int]]) -> None:
        # by parent node, token, and whether it is an option's
        self._nodes: dict[tuple[int, int, bool], int] = {}
        self._ids: list[int] = []
        self._starts: list[int] = []  # how many nodes there were before each prompt
        self.paths: list[list[int]] = []  # of each prompt, its nodes from the first to the last
        for ids in prompts:
            self._add([], ids, is_option=False)

    def __len__(self) -> int:
        return len(self._ids)

    def branch(self, path: Sequence[int], ids: Sequence[int]) -> list[int]:
        """Add an option's tokens behind a prompt's nodes. Returns all its nodes.

        Options share nodes with one another, but not with prompts, which have been read before.
        """
        return self._add(path, ids, is_option=True)

    def _add(self, path: Sequence[int], ids: Sequence[int], *, is_option: bool) -> list[int]:
        self._starts.append(len(self._ids))
        whole = list(path)
        for token in ids:
            edge = (whole[-1] if whole else -1, token, is_option)
            whole.append(self._nodes.setdefault(edge, len(self._ids)))
            if whole[-1] == len(self._ids):
                self._ids.append(token)
        self.paths.append(whole)
        return whole

    def piece(
        self,
        start: int,
        end: int,
        layers: int,
        device: torch.device,
        *,
        is_read_whole: bool = False,
    ) -> Piece:
        """Return what it takes to read nodes [start, end) in a model of so many layers.

        Behind the last layer only the ends of prompts are read, or all nodes where it `is_read_whole`.
        """
        nodes, branches = range(start, end), list(self._branches(start, end))
        depths = [depth for first, _, path in branches for depth in range(first, len(path))]
        before = sorted(
            {node for first, _, path in branches for node in path[:first] if node < start}
        )
        column = {node: index for index, node in enumerate([*before, *nodes])}
        sees = torch.zeros(len(nodes), len(column), dtype=torch.bool)
        for first, row, path in branches:
            # each of a prompt's own tokens sees all of the prompt up to itself
            own = torch.ones(len(path) - first, len(path), dtype=torch.bool).tril_(first)
            sees[row : row + len(own), [column[node] for node in path]] = own
        ends = [path[-1] in nodes for path in self.paths]
        last = [
            path[-1] - start if here else 0 for path, here in zip(self.paths, ends, strict=True)
        ]
        ids = self._ids[start:end]
        # In the first layer a token's query depends on the token and its depth alone.
        ids_at_depths = list(zip(ids, depths, strict=True))
        prefix_queries = (
            _unique_queries(ids_at_depths, device),
            *[None] * (layers - 2),
            None if is_read_whole else _last_queries(last, len(nodes), device),
        )
        return Piece(
            torch.tensor(ids, device=device),
            torch.tensor(depths, device=device),
            torch.tensor(before, dtype=torch.int64, device=device),
            sees.to(device),
            torch.tensor(last, device=device),
            torch.tensor(ends, device=device),
            prefix_queries[:layers],
        )

    def _branches(self, start: int, end: int) -> Iterator[tuple[int, int, list[int]]]:
        """Yield what each prompt adds to nodes [start, end): its first depth there, its row in the piece, and its
        path so far.
        """
        behind = [*self._starts[1:], len(self)]
        for path, begin, stop in zip(self.paths, self._starts, behind, strict=True):
            low, high = max(begin, start), min(stop, end)
            if low < high:
                first = len(path) - (stop - low)
                yield first, low - start, path[: first + high - low]


def _unique_queries(tokens: Sequence[Hashable], device: torch.device) -> PrefixQueries | None:
    """Return queries of which one attends for all equal tokens, None where no two are equal."""
    first: dict[Hashable, int] = {}
    of = [first.setdefault(token, len(first)) for token in tokens]
    if len(first) == len(tokens):
        return None
    indices = [of.index(number) for number in range(len(first))]
    return PrefixQueries(torch.tensor(indices, device=device), torch.tensor(of, device=device))


def _last_queries(tokens: Sequence[int], count: int, device: torch.device) -> PrefixQueries:
    """Return queries where only these of `count` tokens attend. What the others take does not matter."""
    indices = sorted(set(tokens))
    of = [0] * count
    for number, index in enumerate(indices):
        of[index] = number
    return PrefixQueries(torch.tensor(indices, device=device), torch.tensor(of, device=device))
