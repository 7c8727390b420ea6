"""Which tokens of several questions look at the memory while they are read: those that are alike, once for all.

A token's state behind any layer is a function of the memory and of the question up to it, so questions that begin
alike share the work on their beginnings, which every chat template gives them. Knows no cache and no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stream_sttm.engine.attention import Asking


class Beginnings:
    """Prompts of one batch, every token numbered by what all of its prompt up to it is."""

    def __init__(self, prompts: Sequence[Sequence[int]]) -> None:
        known: dict[tuple[int, int], int] = {}
        self._numbered: list[list[int]] = []
        for ids in prompts:
            so_far, numbers = -1, []
            for token in ids:
                so_far = known.setdefault((so_far, token), len(known))
                numbers.append(so_far)
            self._numbered.append(numbers)

    def asking(self, start: int, end: int, layers: int, device: torch.device) -> list[Asking]:
        """Who looks at the memory while columns [start, end) are read, layer by layer.

        Padding behind a short prompt does not; in the last layer only the last token of each prompt does, for nothing
        else is read off it.
        """
        count = end - start
        first: dict[int, int] = {}
        tokens: list[int] = []
        of: list[int] = []
        ends: list[int] = []
        for row, numbers in enumerate(self._numbered):
            for column in range(start, end):
                number = numbers[min(column, len(numbers) - 1)]
                if number not in first:
                    first[number] = len(tokens)
                    tokens.append(row * count + column - start)
                of.append(first[number])
            ends.append(row * count + min(max(len(numbers) - 1 - start, 0), count - 1))
        whose = [0] * len(of)
        for place, token in enumerate(ends):
            whose[token] = place
        each, last = (
            Asking(torch.tensor(asks, device=device), torch.tensor(answers, device=device))
            for asks, answers in ((tokens, of), (ends, whose))
        )
        return [*[each] * (layers - 1), last]
