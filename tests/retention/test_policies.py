"""What every retention policy owes a full memory, and what each of them keeps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_sttm.errors import ConfigError
from stream_sttm.retention import POLICIES, Held, RetentionPolicy, build_policy


@pytest.fixture(params=sorted(POLICIES))
def policy(request: pytest.FixtureRequest) -> RetentionPolicy:
    return build_policy(request.param)


def memory(seed: int, frames: int = 12, side: int = 8) -> Held:
    """Return some cells of every frame; what each stands for, and until when it was seen, is drawn at random."""
    drawn = torch.Generator().manual_seed(seed)
    boxes, seen = [], []
    for frame in range(3, 3 + frames):
        count = int(torch.randint(1, side * side, (1,), generator=drawn))
        places = torch.randperm(side * side, generator=drawn)[:count].sort().values
        y, x = places // side, places % side
        boxes.append(torch.stack([torch.full_like(y, frame), y, x, y + 1, x + 1], 1))
        seen.append(torch.randint(frame, 3 + frames, (count,), generator=drawn))
    joined = torch.cat(boxes)
    sizes = torch.randint(1, 9, (len(joined),), generator=drawn).float()
    return Held(joined, torch.cat(seen), sizes)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(POLICIES)), st.integers(0, 10**6), st.floats(0, 1))
def test_a_policy_drops_at_least_what_must_go(name: str, seed: int, share: float) -> None:
    held = memory(seed)
    drop = max(1, round(share * len(held)))
    stays = build_policy(name)(held, drop=drop)
    assert stays.dtype == torch.bool
    assert stays.shape == (len(held),)
    assert int((~stays).sum()) >= drop


def test_a_policy_chooses_the_same_again_and_changes_nothing(policy: RetentionPolicy) -> None:
    held = memory(5)
    before = [part.clone() for part in (held.boxes, held.last_seen, held.sizes)]
    assert torch.equal(policy(held, drop=40), policy(held, drop=40))
    for part, old in zip((held.boxes, held.last_seen, held.sizes), before, strict=True):
        assert torch.equal(part, old)


def test_a_policy_keeps_most_when_little_must_go(policy: RetentionPolicy) -> None:
    held = memory(6)
    newest = held.frames == held.frames[-1]
    stays = policy(held, drop=1)
    assert bool(stays[newest & (held.last_seen == held.last_seen.max())].all())


def test_fifo_drops_whole_frames_oldest_first() -> None:
    held = memory(1)
    stays = build_policy("fifo")(held, drop=1)
    assert torch.equal(stays, held.frames > held.frames[0])


def test_lru_drops_exactly_what_was_seen_longest_ago() -> None:
    held = memory(2)
    stays = build_policy("lru")(held, drop=50)
    assert int((~stays).sum()) == 50
    assert held.last_seen[~stays].max() <= held.last_seen[stays].min()


def test_lru_keeps_an_old_token_that_is_still_in_view() -> None:
    held = memory(3)
    held.last_seen[0] = held.last_seen.max() + 1
    assert bool(build_policy("lru")(held, drop=len(held) - 1)[0])


def test_tiered_thins_the_past_and_leaves_the_recent_half_alone() -> None:
    held = memory(4)
    stays = build_policy("tiered")(held, drop=1)
    recent = held.frames >= 9
    assert bool(stays[recent].all())
    cells = torch.cat([held.frames[:, None], held.boxes[:, 1:3] // 4], 1)
    kept = cells[stays & ~recent]
    assert len(kept) == len(torch.unique(cells[~recent], dim=0)) == len(torch.unique(kept, dim=0))


def test_tiered_keeps_one_token_each_of_the_oldest_frames_when_that_is_not_enough() -> None:
    held = memory(4)
    coarse = int((~build_policy("tiered")(held, drop=1)).sum())
    stays = build_policy("tiered")(held, drop=coarse + 1)
    oldest = held.frames < 5  # 2 of 12 frames are neither recent nor coarse
    assert held.frames[stays & oldest].tolist() == [3, 4]
    largest = [held.sizes[held.frames == frame].max() for frame in (3, 4)]
    assert held.sizes[stays & oldest].tolist() == largest


def test_tiered_lets_whole_frames_go_only_when_nothing_can_be_thinned() -> None:
    held = memory(4)
    newest = held.frames == held.frames[-1]
    assert torch.equal(build_policy("tiered")(held, drop=int((~newest).sum())), newest)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("fifoo", {}, "did you mean 'fifo'"),
        ("lru", {"share": 1}, "no option 'share'"),
        ("tiered", {"recent": 0.9, "coarse": 0.2}, "shares of one memory"),
        ("tiered", {"recent": True}, "recent must be a number"),
        ("tiered", {"cell": 1}, "cell must be"),
    ],
)
def test_a_wrong_policy_is_refused_with_one_line(
    name: str, options: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        build_policy(name, options)
    assert "\n" not in str(refused.value)
