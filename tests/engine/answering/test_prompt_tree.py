"""Prompts as a tree: what is read once, in which order, and what each token sees."""

from __future__ import annotations

import random

import pytest
import torch

from stream_sttm.engine.answering.prompt_tree import PromptTree

CPU = torch.device("cpu")
ALIKE = ([7, 1, 2, 3, 9], [7, 1, 2, 4, 5, 9], [7, 6, 9])


def _random(seed: int) -> list[list[int]]:
    """Prompts of few different tokens, so that many begin alike, some are equal and some begin another."""
    chance = random.Random(seed)
    return [[chance.randrange(3) for _ in range(chance.randint(1, 9))] for _ in range(12)]


def test_what_prompts_share_from_their_beginning_is_read_once() -> None:
    tree = PromptTree(ALIKE)
    assert len(tree) == len({tuple(ids[: end + 1]) for ids in ALIKE for end in range(len(ids))})
    assert tree.paths == [[0, 1, 2, 3, 4], [0, 1, 2, 5, 6, 7], [0, 8, 9]]
    whole = tree.piece(0, len(tree), 4, CPU)
    assert whole.ids.tolist() == [7, 1, 2, 3, 9, 4, 5, 9, 6, 9]
    assert whole.depths.tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 1, 2]
    assert whole.last.tolist() == [4, 7, 9]
    assert whole.ends.all()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("at_once", [1, 4, 7, 1000])
def test_every_token_sees_its_own_prompt_up_to_itself_and_nothing_else(
    seed: int, at_once: int
) -> None:
    prompts = _random(seed)
    tree = PromptTree(prompts)
    ids, depths, seen, ended = [], [], [], {}
    for start in range(0, len(tree), at_once):
        piece = tree.piece(start, min(len(tree), start + at_once), 3, CPU)
        count = len(piece.ids)
        nodes = torch.cat([piece.before, torch.arange(start, start + count)])
        seen += [nodes[sees].tolist() for sees in piece.sees]
        # no column is shown that nothing in the piece looks at
        assert piece.sees.any(0).all()
        ids += piece.ids.tolist()
        depths += piece.depths.tolist()
        for prompt, (last, here) in enumerate(zip(piece.last, piece.ends, strict=True)):
            if here:
                assert prompt not in ended
                ended[prompt] = start + int(last)
    for node, before in enumerate(seen):
        assert before[-1] == node
        assert depths[node] == len(before) - 1
        assert before == sorted(before)
    assert len({tuple(ids[node] for node in before) for before in seen}) == len(tree)
    for prompt, path in enumerate(tree.paths):
        assert [ids[node] for node in path] == prompts[prompt]
        assert seen[path[-1]] == path
        assert ended[prompt] == path[-1]


def test_the_first_layer_asks_once_per_token_and_place_and_the_last_only_for_the_ends() -> None:
    tree = PromptTree(([7, 1, 9], [7, 2, 9], [7, 3, 8], [7, 1, 9]))
    first, *between, last = tree.piece(0, len(tree), 4, CPU).prefix_queries
    assert between == [None, None]
    assert first is not None
    assert last is not None
    assert first.tokens.tolist() == [0, 1, 2, 3, 5, 6]
    assert first.of.tolist() == [0, 1, 2, 3, 2, 4, 5]
    assert last.tokens.tolist() == [2, 4, 6]
    assert last.of[last.tokens].tolist() == [0, 1, 2]
    assert PromptTree(ALIKE).piece(0, 10, 4, CPU).prefix_queries[0] is None  # no two are alike
