"""A stream's memory: equal however it is cut, bounded, exact after eviction, untouched for whoever reads it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stream_sttm.engine.answering import batch as answering
from stream_sttm.engine.answering.batch import AnswerBatch
from stream_sttm.engine.answering.formats import AnswerFormats
from stream_sttm.engine.cache import frame_history
from stream_sttm.engine.cache.kv_buffer import Format
from stream_sttm.engine.plan import MemoryPlan
from stream_sttm.engine.session import StreamSession
from stream_sttm.engine.snapshot import draw_mosaic, take_view
from stream_sttm.engine.view import Appended, View
from stream_sttm.errors import ConfigError, StateError
from stream_sttm.models.family import VideoLLM
from stream_sttm.reducers import build_reducer
from stream_sttm.retention import POLICIES, build_policy
from stream_sttm.types import Question

PLAN = MemoryPlan(
    merge_at=2,
    window_tokens=512,
    shallow_tokens=512,
    horizon=1500,
    rebase_at=2048,
    question_tokens=500,
    evict_share=0.125,
    size_bias=0.0,
    fresh_frames=0,
    positions="own",
    prune_shallow=False,
    retention=build_policy("fifo"),
    kv="auto",
)
STTM = {"spatial_threshold": 0.7, "temporal_threshold": 0.7}
ROWS = COLUMNS = 4
CELLS = ROWS * COLUMNS


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.inference_mode():
        yield


def _session(
    model: VideoLLM, plan: MemoryPlan = PLAN, reducer: str = "sttm_streaming"
) -> StreamSession:
    options = STTM if reducer == "sttm_streaming" else {}
    return StreamSession(model, build_reducer(reducer, options), plan, stream="cam", fps=2.0)


def _video(model: VideoLLM, frames: int, seed: int = 0) -> Tensor:
    """Features of a mostly still scene: a fixed background, a few cells that change, a little noise."""
    generator = torch.Generator().manual_seed(seed)
    width = model.text.config.hidden_size

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, width, generator=generator)

    video = noise(1, ROWS, COLUMNS).repeat(frames, 1, 1, 1)
    for frame in range(1, frames):
        video[frame] = video[frame - 1] + 0.02 * noise(ROWS, COLUMNS)
        row, column = torch.randint(0, ROWS, (2,), generator=generator).tolist()
        video[frame, row, column] = noise()
    return video * 0.5


def _feed(session: StreamSession, video: Tensor, cut: int) -> None:
    for start in range(0, len(video), cut):
        window = video[start : start + cut]
        first = session.frames
        session.append(window, [float(first + i) / 2 for i in range(len(window))])


def _question(text: str, most: int = 12) -> Question:
    return Question(text, "cam", text, 0.0, most)


def _answers(model: VideoLLM, session: StreamSession, *texts: str) -> dict[str, str]:
    batch = AnswerBatch(
        model, take_view(session), [_question(text) for text in texts], AnswerFormats(model)
    )
    done = batch.step()
    while batch.questions:
        done += batch.step()
    return {one.question.id: one.text for one in done}


def _first_logits(
    model: VideoLLM, session: StreamSession, text: str, view: View | None = None
) -> Tensor:
    seen: list[Tensor] = []
    view = view or take_view(session)
    batch = AnswerBatch(model, view, [_question(text, most=1)], AnswerFormats(model))
    batch._choose_tokens = lambda logits: seen.append(logits) or []  # type: ignore[method-assign,func-returns-value]
    batch.step()
    return seen[0]


def _layer(session: StreamSession, layer: int) -> tuple[Tensor, Tensor]:
    shared = session.cache.snapshot().prefix_kv(layer)
    return shared.keys, shared.values


@pytest.mark.parametrize("merge_at", [0, 2])
@pytest.mark.parametrize("cut", [1, 3, 12])
def test_memory_is_equal_however_the_stream_is_cut(
    tiny_model: VideoLLM, merge_at: int, cut: int
) -> None:
    plan = replace(PLAN, merge_at=merge_at)
    video = _video(tiny_model, 12)
    whole, parts = _session(tiny_model, plan), _session(tiny_model, plan)
    _feed(whole, video, 12)
    _feed(parts, video, cut)
    assert len(whole.cache.deep) == len(parts.cache.deep) < 12 * CELLS
    for layer in range(len(tiny_model.layers)):
        for ours, wanted in zip(_layer(parts, layer), _layer(whole, layer), strict=True):
            assert torch.allclose(ours, wanted, atol=2e-5)
    assert torch.allclose(
        _first_logits(tiny_model, parts, "what is there?"),
        _first_logits(tiny_model, whole, "what is there?"),
        atol=2e-4,
    )


def test_layers_below_the_merge_hold_every_token_and_those_above_the_survivors(
    tiny_model: VideoLLM,
) -> None:
    session = _session(tiny_model)
    _feed(session, _video(tiny_model, 8), 2)
    lengths = [session.cache.length(layer) for layer in range(len(tiny_model.layers))]
    assert lengths[:2] == [8 * CELLS] * 2
    assert lengths[2] == lengths[3] == len(session.cache.deep) < 6 * CELLS


@pytest.mark.parametrize("cut", [1, 3, 4])
def test_pruned_shallow_layers_hold_the_survivors_and_nothing_else(
    tiny_model: VideoLLM, cut: int
) -> None:
    plan = replace(PLAN, prune_shallow=True, window_tokens=64, shallow_tokens=64)
    session = _session(tiny_model, plan)
    _feed(session, _video(tiny_model, 32), cut)
    shallow, deep = session.cache.groups
    assert deep.evicted > 0
    newest = min(len(shallow), len(deep))
    assert newest > CELLS
    assert shallow.table.frames[-newest:].tolist() == deep.table.frames[-newest:].tolist()
    assert session.cache.length(0) == len(shallow) < 64
    assert _answers(tiny_model, session, "what is there?")


def test_pruning_takes_the_tokens_that_were_merged_and_leaves_the_others_as_they_were(
    tiny_model: VideoLLM,
) -> None:
    plain, pruned = (
        _session(tiny_model, replace(PLAN, prune_shallow=prune)) for prune in (False, True)
    )
    for session in (plain, pruned):
        _feed(session, _video(tiny_model, 6), 6)
    assert len(pruned.cache.groups[0]) == len(plain.cache.deep) < 6 * CELLS
    for layer in (0, 1):
        for ours, whole in zip(_layer(pruned, layer), _layer(plain, layer), strict=True):
            is_same = (ours[0, 0, :, None] == whole[0, 0, None]).all(-1)
            found = is_same.int().argmax(1)
            assert bool(is_same.any(1).all()), "every row was there before"
            assert bool((found.diff() > 0).all()), "in the same order"


def test_pruning_an_unmerged_memory_changes_nothing(tiny_model: VideoLLM) -> None:
    plain, pruned = (
        _session(tiny_model, replace(PLAN, prune_shallow=prune), "none") for prune in (False, True)
    )
    for session in (plain, pruned):
        _feed(session, _video(tiny_model, 6), 2)
    for layer in range(len(tiny_model.layers)):
        for ours, wanted in zip(_layer(pruned, layer), _layer(plain, layer), strict=True):
            assert torch.equal(ours, wanted)


@pytest.mark.parametrize("reducer", ["none", "sttm_streaming"])
def test_rebase_leaves_logits_unchanged(tiny_model: VideoLLM, reducer: str) -> None:
    session = _session(tiny_model, replace(PLAN, window_tokens=160, shallow_tokens=160), reducer)
    _feed(session, _video(tiny_model, 30), 2)
    before = _first_logits(tiny_model, session, "how many objects are there?")
    moved = [group.origin - group.offset for group in session.cache.groups]
    for group in session.cache.groups:
        group.rebase(tiny_model.turn)
    after = _first_logits(tiny_model, session, "how many objects are there?")
    assert max(moved) > 0
    assert all(group.offset == group.origin for group in session.cache.groups)
    assert torch.allclose(before, after, atol=1e-3 * before.std())


def test_first_layer_after_eviction_equals_a_fresh_prefill_of_what_was_kept(
    tiny_model: VideoLLM,
) -> None:
    """Deeper layers differ by design: kept keys remember what was evicted."""
    plan = replace(PLAN, window_tokens=10 * CELLS, shallow_tokens=10 * CELLS)
    video = _video(tiny_model, 17)
    old = _session(tiny_model, plan, "none")
    _feed(old, video, 1)
    for group in old.cache.groups:
        group.rebase(tiny_model.turn)
    kept = video[old._oldest_frame() :]
    assert 0 < len(kept) < 17
    fresh = _session(tiny_model, plan, "none")
    _feed(fresh, kept, 1)
    for ours, wanted in zip(_layer(old, 0), _layer(fresh, 0), strict=True):
        assert torch.allclose(ours, wanted, atol=1e-4)
    assert take_view(old).starts == take_view(fresh).starts


def test_a_running_answer_is_untouched_by_eviction_and_rebase(tiny_model: VideoLLM) -> None:
    plan = replace(PLAN, window_tokens=8 * CELLS, shallow_tokens=8 * CELLS, rebase_at=12 * CELLS)
    video = _video(tiny_model, 40)
    calm, busy = _session(tiny_model, plan), _session(tiny_model, plan)
    texts = ("what is there?", "is there a red circle?")
    finished: list[dict[str, str]] = []
    for session, is_busy in ((calm, False), (busy, True)):
        _feed(session, video[:6], 2)
        batch = AnswerBatch(
            tiny_model,
            take_view(session),
            [_question(text) for text in texts],
            AnswerFormats(tiny_model),
        )
        done = batch.step()
        start = 6
        while batch.questions:
            if is_busy:
                _feed(session, video[start : start + 2], 2)
                start += 2
            done += batch.step()
        finished.append({one.question.id: one.text for one in done})
    assert busy.cache.deep.evicted > 0
    assert finished[0] == finished[1]


@pytest.mark.parametrize("reducer", ["none", "sttm_streaming"])
@pytest.mark.parametrize("fresh_frames", [0, 1])
def test_batched_questions_equal_one_by_one(
    tiny_model: VideoLLM, reducer: str, fresh_frames: int
) -> None:
    session = _session(tiny_model, replace(PLAN, fresh_frames=fresh_frames), reducer)
    _feed(session, _video(tiny_model, 10), 2)
    texts = (
        "a?",
        "what objects are there in the picture now?",
        "what objects are there?",
        "which way does the star move?",
        "how many?",
    )
    together = _answers(tiny_model, session, *texts)
    alone = {text: _answers(tiny_model, session, text)[text] for text in texts}
    assert together == alone
    assert len(set(together.values())) > 1


def test_long_questions_read_in_pieces_are_answered_as_if_read_at_once(
    tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = _session(tiny_model, replace(PLAN, fresh_frames=1))
    _feed(session, _video(tiny_model, 6), cut=2)
    texts = ["what is there?", "is there a red circle " * 6 + "?", "how many? " * 9, "who?"]
    whole = _answers(tiny_model, session, *texts)
    monkeypatch.setattr(answering, "PIECE", 20)
    assert _answers(tiny_model, session, *texts) == whole
    batch = AnswerBatch(
        tiny_model,
        take_view(session),
        [_question(text) for text in texts],
        AnswerFormats(tiny_model),
    )
    batch.step()
    assert batch._suffix.length == 20


def test_positions_stay_within_the_horizon_and_memory_stays_flat(tiny_model: VideoLLM) -> None:
    horizon = tiny_model.own_time(10, (ROWS, COLUMNS), tiny_model.step(2.0))
    plan = replace(PLAN, horizon=horizon, rebase_at=3 * horizon, window_tokens=9 * CELLS)
    session = _session(tiny_model, plan)
    size = session.cache.nbytes
    video = _video(tiny_model, 120)
    for start in range(0, 120, 2):
        _feed(session, video[start : start + 2], 2)
        for group, (time, place) in zip(
            session.cache.groups, take_view(session).starts, strict=True
        ):
            assert len(group) <= group.capacity
            assert time <= plan.rebase_at + group.pinned
            assert place <= horizon + group.pinned + CELLS
    assert session.cache.deep.evicted > 0
    assert session.cache.nbytes == size
    assert len(session.history.records) <= 30


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("prune_shallow", [False, True])
def test_every_cell_of_the_newest_frame_is_represented_after_any_eviction(
    tiny_model: VideoLLM, policy: str, prune_shallow: bool
) -> None:
    plan = replace(
        PLAN,
        window_tokens=4 * CELLS,
        shallow_tokens=4 * CELLS,
        retention=build_policy(policy),
        prune_shallow=prune_shallow,
    )
    session = _session(tiny_model, plan)
    video = _video(tiny_model, 60, seed=4)
    for start in range(0, 60, 2):
        _feed(session, video[start : start + 2], 2)
        alive = set(session.cache.deep.table.serials.tolist())
        serials = session.reducer_state.serials.tolist()
        assert serials
        assert all(serial in alive for serial in serials)
    assert session.cache.deep.evicted > 0


def _again(session: StreamSession, frames: int = 2) -> Appended:
    first = session.frames
    return session.repeat([float(first + i) / 2 for i in range(frames)])


def test_frames_that_repeat_the_newest_write_nothing_and_are_counted_where_they_are_seen(
    tiny_model: VideoLLM,
) -> None:
    session = _session(tiny_model)
    _feed(session, _video(tiny_model, 4), 2)
    lengths = [len(group) for group in session.cache.groups]
    written = [group.written for group in session.cache.groups]
    for _ in range(5):
        assert _again(session) == Appended(2 * CELLS, 0, 0, False)
    assert [len(group) for group in session.cache.groups] == lengths
    assert [group.written for group in session.cache.groups] == written
    assert (session.frames, session.span_seconds) == (14, 13 / 2)
    deep = session.cache.deep
    assert float(deep.sizes[: len(deep)].sum()) == 14 * CELLS
    shown = deep.last_seen[: len(deep)][
        torch.isin(deep.table.serials, session.reducer_state.serials)
    ]
    assert set(shown.tolist()) == {13}
    assert take_view(session).before_merge == 14 * CELLS
    assert _answers(tiny_model, session, "what is there?")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("fresh", [0, 2])
def test_however_long_a_picture_stands_it_is_represented_and_nothing_leaves_the_horizon(
    tiny_model: VideoLLM, policy: str, fresh: int
) -> None:
    plan = replace(
        PLAN,
        window_tokens=6 * CELLS,
        shallow_tokens=6 * CELLS,
        horizon=300,
        rebase_at=400,
        retention=build_policy(policy),
        fresh_frames=fresh,
    )
    session = _session(tiny_model, plan)
    video = _video(tiny_model, 8, seed=4)
    anew = 0
    for start in range(0, 8, 2):
        _feed(session, video[start : start + 2], 2)
        for _ in range(30):
            anew += _again(session).after_merge
            alive = set(session.cache.deep.table.serials.tolist())
            assert {*session.reducer_state.serials.tolist()} <= alive
            ends = [
                session.positions.end(group, (ROWS, COLUMNS), frame=session.frames, count=0)
                for group in session.cache.groups
            ]
            for group, end in zip(session.cache.groups, ends, strict=True):
                assert end - int(group.table.times[0]) <= plan.horizon
    assert anew > 0
    assert _answers(tiny_model, session, "what is there?")


def test_a_reducer_that_merges_with_nothing_gets_repeated_frames_in_full(
    tiny_model: VideoLLM,
) -> None:
    video = _video(tiny_model, 4)
    repeated, shown = (_session(tiny_model, reducer="none") for _ in range(2))
    for session in (repeated, shown):
        _feed(session, video, 2)
    _again(repeated)
    _feed(shown, video[-1:].expand(2, -1, -1, -1), 2)
    for layer in range(len(tiny_model.layers)):
        for ours, wanted in zip(_layer(repeated, layer), _layer(shown, layer), strict=True):
            assert torch.equal(ours, wanted)


def test_what_comes_after_repeated_frames_stands_where_it_would_have_stood(
    tiny_model: VideoLLM,
) -> None:
    """Merged before the first layer, repeating a frame is exactly the same as showing it again."""
    video = _video(tiny_model, 6)
    still = torch.cat([video[:4], video[3:4].expand(6, -1, -1, -1), video[4:]])
    repeated, shown = (_session(tiny_model, replace(PLAN, merge_at=0)) for _ in range(2))
    _feed(shown, still, 2)
    _feed(repeated, video[:4], 2)
    for _ in range(3):
        _again(repeated)
    _feed(repeated, video[4:], 2)
    assert len(repeated.cache.deep) == len(shown.cache.deep)
    for layer in range(len(tiny_model.layers)):
        for ours, wanted in zip(_layer(repeated, layer), _layer(shown, layer), strict=True):
            assert torch.allclose(ours, wanted, atol=2e-5)
    deep = repeated.cache.deep
    assert torch.equal(deep.last_seen, shown.cache.deep.last_seen)
    assert torch.equal(deep.sizes, shown.cache.deep.sizes)


def test_fresh_view_shows_the_newest_frames_whole_and_none_twice(tiny_model: VideoLLM) -> None:
    merged, fresh = (_session(tiny_model, replace(PLAN, fresh_frames=count)) for count in (0, 2))
    video = _video(tiny_model, 8)
    _feed(merged, video, 2)
    _feed(fresh, video, 2)
    newest = int((merged.cache.deep.table.frames >= 6).sum())
    assert take_view(fresh).visual == take_view(merged).visual - newest + 2 * CELLS
    assert take_view(fresh).starts == take_view(merged).starts


def _fresh_tokens(session: StreamSession, layer: int) -> int:
    """How many tokens of the fresh frames ran anew in one layer."""
    snapshot, fresh = take_view(session).prefix
    assert snapshot.prefix_kv(layer).keys.shape[2] > 0
    return int(fresh.prefix_kv(layer).keys.shape[2])


@pytest.mark.parametrize("count", [1, 2])
def test_fresh_frames_run_only_where_the_memory_has_not_got_them_whole(
    tiny_model: VideoLLM, count: int
) -> None:
    session = _session(tiny_model, replace(PLAN, fresh_frames=count))
    _feed(session, _video(tiny_model, 8), 2)
    layers = range(len(tiny_model.layers))
    assert [_fresh_tokens(session, layer) for layer in layers] == [
        0 if layer < PLAN.merge_at else count * CELLS for layer in layers
    ]
    logits = _first_logits(tiny_model, session, "what is there?")
    states = [*session.history._states]
    session.history._states.clear()
    assert [_fresh_tokens(session, layer) for layer in layers] == [count * CELLS for _ in layers]
    anew = _first_logits(tiny_model, session, "what is there?")
    assert torch.allclose(logits, anew, atol=2e-4)
    session.history._states.extend(torch.zeros_like(state) for state in states)
    assert not torch.allclose(_first_logits(tiny_model, session, "what is there?"), anew, atol=2e-2)


def test_fresh_frames_run_anew_where_they_were_pruned_or_repeat_others(
    tiny_model: VideoLLM,
) -> None:
    plan, video = replace(PLAN, fresh_frames=1), _video(tiny_model, 8)
    pruned, repeated = (
        _session(tiny_model, one) for one in (replace(plan, prune_shallow=True), plan)
    )
    for session in (pruned, repeated):
        _feed(session, video[:6], 2)
    _again(repeated)
    for session in (pruned, repeated):
        assert _fresh_tokens(session, 0) == CELLS
        assert _answers(tiny_model, session, "what is there?")
    _feed(repeated, video[6:], 2)
    assert _fresh_tokens(repeated, 0) == 0
    assert take_view(repeated, fresh_frames=2).prefix[1].prefix_kv(0).keys.shape[2] == 0
    assert take_view(repeated, fresh_frames=3).prefix[1].prefix_kv(0).keys.shape[2] == 3 * CELLS


def test_fresh_view_of_an_unmerged_memory_changes_nothing(tiny_model: VideoLLM) -> None:
    plain = _session(tiny_model, PLAN, "none")
    fresh = _session(tiny_model, replace(PLAN, fresh_frames=2), "none")
    for session in (plain, fresh):
        _feed(session, _video(tiny_model, 6), 2)
    texts = ("what is there?", "how many?")
    assert _answers(tiny_model, plain, *texts) == _answers(tiny_model, fresh, *texts)


def test_a_memory_nobody_asks_of_does_not_grow_either(tiny_model: VideoLLM) -> None:
    session = _session(tiny_model, replace(PLAN, window_tokens=96, shallow_tokens=96))
    _feed(session, _video(tiny_model, 120), cut=2)
    oldest = int(session.cache.deep.table.frames[0])
    assert [record.frame for record in session.history.records] == list(range(oldest, 120))
    assert session.span_seconds == (119 - oldest) / 2


@pytest.mark.parametrize("shown", ["repeated", "encoded anew"])
def test_a_memory_of_a_scene_that_stands_still_for_ever_stays_as_small_as_it_is(
    tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch, shown: str
) -> None:
    """With contiguous positions nothing ever leaves it."""
    monkeypatch.setattr(frame_history, "MOST_RECORDS", 128)
    positions = "contiguous" if tiny_model.axes == 1 else "own"
    plan = replace(PLAN, positions=positions, merge_at=0, horizon=1900)
    session = _session(tiny_model, plan)
    still = _video(tiny_model, 1).expand(2, -1, -1, -1)
    _feed(session, still, 2)
    for _ in range(99):
        _again(session) if shown == "repeated" else _feed(session, still, 2)
        assert len(session.history.records) <= 128
    assert (session.frames, session.span_seconds) == (200, 199 / 2)
    assert take_view(session).before_merge == 200 * CELLS
    mosaic = draw_mosaic(session)
    assert mosaic.before == 200 * CELLS
    assert max(tile.age_s for tile in mosaic.tiles) == 199 / 2
    assert _answers(tiny_model, session, "what is there?")


def test_a_camera_that_changes_its_picture_size_stays_answerable_and_counted_right(
    tiny_model: VideoLLM,
) -> None:
    """The new size's features are a cut-out here; a real encoder gives other values, on the same grids."""
    if tiny_model.axes == 1:
        pytest.skip("this family resizes every picture to one grid")
    session = _session(tiny_model, replace(PLAN, fresh_frames=2))
    video = _video(tiny_model, 6)
    session.append(video[:3], [0.0, 1.0, 2.0])
    session.append(video[3:4, :, :3], [3.0])
    assert take_view(session).before_merge == 3 * CELLS + 4 * 3
    assert _answers(tiny_model, session, "what is there?")
    session.append(video[4:], [4.0, 5.0])
    view = take_view(session)
    assert view.before_merge == 5 * CELLS + 4 * 3
    assert len(view.prefix) == 2, "the newest frames are shown fresh"
    assert _answers(tiny_model, session, "what is there?")


def test_size_bias_gives_a_merged_token_the_weight_of_what_it_stands_for(
    tiny_model: VideoLLM,
) -> None:
    """A still scene seen n times weighs on a question as n equal copies would: log(n) on every logit."""
    biased = _session(tiny_model, replace(PLAN, size_bias=1.0))
    plain = _session(tiny_model, PLAN)
    still = _video(tiny_model, 1).repeat(6, 1, 1, 1)
    for session in (biased, plain):
        _feed(session, still, 2)
    deep = biased.cache.deep
    assert deep.sizes[: len(deep)].tolist() == plain.cache.deep.sizes[: len(deep)].tolist()
    assert float(deep.sizes[: len(deep)].sum()) == 6 * CELLS
    bias = biased.cache.bias(deep, len(deep))
    assert bias is not None
    assert torch.allclose(bias[deep.pinned :].exp(), deep.sizes[: len(deep)])
    assert bias[: deep.pinned].abs().sum() == 0
    assert not torch.allclose(
        _first_logits(tiny_model, biased, "what is there?"),
        _first_logits(tiny_model, plain, "what is there?"),
    )


def test_contiguous_positions_leave_no_gap(tiny_model: VideoLLM) -> None:
    if tiny_model.axes > 1:
        pytest.skip("only for one position axis")
    session = _session(tiny_model, replace(PLAN, positions="contiguous"))
    _feed(session, _video(tiny_model, 8), 2)
    deep = session.cache.deep
    assert deep.table.times.tolist() == list(range(len(deep)))
    assert take_view(session).starts[1][0] == deep.pinned + len(deep)


def test_a_window_larger_than_the_memory_is_refused_with_the_smallest_that_works(
    tiny_model: VideoLLM,
) -> None:
    session = _session(tiny_model, replace(PLAN, window_tokens=3 * CELLS))
    with pytest.raises(ConfigError, match=f"memory.window_tokens to {4 * CELLS} or more"):
        _feed(session, _video(tiny_model, 4), 4)


@pytest.mark.parametrize("fresh_frames", [0, 2])
@pytest.mark.parametrize(("prune_shallow", "kv"), [(False, "auto"), (True, "int8")])
def test_a_restored_memory_answers_and_goes_on_as_the_one_it_was_saved_from(
    tiny_model: VideoLLM, fresh_frames: int, prune_shallow: bool, kv: Format
) -> None:
    plan = replace(
        PLAN,
        kv=kv,
        window_tokens=4 * CELLS,
        shallow_tokens=4 * CELLS,
        size_bias=0.5,
        fresh_frames=fresh_frames,
        prune_shallow=prune_shallow,
        retention=build_policy("lru"),
    )
    video = _video(tiny_model, 40)
    session = _session(tiny_model, plan)
    _feed(session, video[:20], 2)
    assert session.cache.deep.evicted > 0
    saved = session.saved()
    before = _first_logits(tiny_model, session, "what is there?")
    answer = _answers(tiny_model, session, "what is there?")
    _feed(session, video[20:], 2)  # what comes later leaves the saved one alone
    back = _session(tiny_model, plan)
    back.restore(saved)
    assert torch.equal(_first_logits(tiny_model, back, "what is there?"), before)
    assert _answers(tiny_model, back, "what is there?") == answer
    _feed(back, video[20:], 2)
    assert torch.equal(
        _first_logits(tiny_model, back, "what left?"),
        _first_logits(tiny_model, session, "what left?"),
    )
    assert back.span_seconds == session.span_seconds


def test_a_saved_memory_with_parts_missing_or_of_another_shape_is_refused(
    tiny_model: VideoLLM,
) -> None:
    session = _session(tiny_model)
    _feed(session, _video(tiny_model, 4), 2)
    saved = session.saved()
    for broken in (
        {},
        {name: part for name, part in saved.items() if not name.startswith("band.1")},
        {**saved, "band.0.keys.0.codes": saved["band.0.keys.0.codes"][:, :, :-1]},
        {**saved, "clock": saved["clock"][:1]},
    ):
        with pytest.raises(StateError, match="not whole"):
            _session(tiny_model).restore(broken)


@pytest.mark.parametrize("kv", ["int8", "fp8"])
def test_eight_bit_memories_are_equal_however_cut_and_near_the_exact_one(
    tiny_model: VideoLLM, kv: Format
) -> None:
    plan = replace(PLAN, kv=kv, window_tokens=8 * CELLS, shallow_tokens=8 * CELLS)
    video = _video(tiny_model, 24)
    logits = []
    for cut, one in ((1, plan), (4, plan), (4, replace(plan, kv="auto"))):
        session = _session(tiny_model, one, reducer="none")
        _feed(session, video[:8], cut)
        logits.append(_first_logits(tiny_model, session, "what is there?"))
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)
    off = (logits[1] - logits[2]).norm() / logits[2].norm()
    assert 0 < off < (0.05 if kv == "int8" else 0.2)


def test_rotations_are_counted_per_token_and_stay_few(tiny_model: VideoLLM) -> None:
    plan = replace(PLAN, window_tokens=4 * CELLS, shallow_tokens=4 * CELLS, rebase_at=200)
    session = _session(tiny_model, replace(plan, horizon=128))
    video = _video(tiny_model, 200)
    seen = 0
    for start in range(0, 200, 2):
        _feed(session, video[start : start + 2], 2)
        deep = session.cache.deep
        seen = max(seen, int(deep.turns[: len(deep)].max()))
        assert int(deep.turns[len(deep) - 1]) == 0 or len(deep) == 1
    assert session.cache.groups[0].offset > 0
    assert 1 <= seen <= 4


def test_window_of_a_question_hides_what_was_last_seen_before_it(tiny_model: VideoLLM) -> None:
    session = _session(tiny_model)
    _feed(session, _video(tiny_model, 20), cut=2)
    whole, last = take_view(session), take_view(session, window_s=2.0)  # two frames a second
    seen = session.cache.deep.last_seen[: len(session.cache.deep)]
    assert last.visual == int((seen >= 15).sum())
    assert last.visual < whole.visual
    assert last.before_merge == 5 * CELLS
    assert last.span == (whole.span[1] - 2.0, whole.span[1])
    hidden = torch.isinf(_bias(last))
    assert hidden.nonzero()[:, 0].tolist() == (seen < 15).nonzero()[:, 0].tolist()


def test_window_longer_than_the_memory_changes_no_logit(tiny_model: VideoLLM) -> None:
    session = _session(tiny_model)
    _feed(session, _video(tiny_model, 6), cut=2)
    expected = _first_logits(tiny_model, session, "what is there?")
    view = take_view(session, window_s=100.0)
    assert torch.equal(_first_logits(tiny_model, session, "what is there?", view), expected)


def test_what_a_window_hides_is_not_looked_at(tiny_model: VideoLLM) -> None:
    session = _session(tiny_model)
    _feed(session, _video(tiny_model, 12), cut=2)
    view = take_view(session, window_s=2.0)
    expected = _first_logits(tiny_model, session, "what is there?", view)
    hidden = torch.isinf(_bias(view)).nonzero()[:, 0]
    for layer in range(view.bounds[-1], len(tiny_model.layers)):
        shared = view.prefix[0].prefix_kv(layer)
        shared.values[:, :, hidden + shared.values.shape[2] - len(_bias(view))] = 1e3
    assert len(hidden)
    assert torch.equal(_first_logits(tiny_model, session, "what is there?", view), expected)


def test_question_may_ask_for_fresh_frames_of_its_own(tiny_model: VideoLLM) -> None:
    session = _session(tiny_model)
    _feed(session, _video(tiny_model, 8), cut=2)
    assert take_view(session).visual < take_view(session, fresh_frames=2).visual
    assert len(take_view(session, fresh_frames=2).prefix) == 2
    # a fresh view never shows more than the question is about
    assert take_view(session, window_s=0.4, fresh_frames=4).visual >= CELLS


def _bias(view: View) -> Tensor:
    bias = view.prefix[0].prefix_kv(view.bounds[-1]).bias
    pinned = bias.shape[0] - len(view.prefix[0].groups[-1].table)
    part: Tensor = bias[pinned:]
    return part


def test_tiles_cover_the_newest_frame_and_name_what_stands_for_each(tiny_model: VideoLLM) -> None:
    session = _session(tiny_model)
    video = _video(tiny_model, 12)
    _feed(session, video[:10], cut=2)
    session.append(video[:2], [100.0, 100.5])  # as at the start: most of it is known
    mosaic, deep = draw_mosaic(session), session.cache.deep
    assert (mosaic.rows, mosaic.columns) == (ROWS, COLUMNS)
    covered = torch.zeros(ROWS, COLUMNS, dtype=torch.int64)
    for tile in mosaic.tiles:
        y0, x0, y1, x1 = tile.box
        covered[y0:y1, x0:x1] += 1
    assert bool((covered == 1).all())
    boxes = {int(s): box for s, box in zip(deep.table.serials, deep.table.boxes, strict=True)}
    for tile in mosaic.tiles:
        frame, *own = boxes[tile.token].tolist()
        is_same = list(tile.box) == own
        assert tile.kind == ("new" if frame >= 10 else "kept" if is_same else "absorbed")
        assert tile.age_s >= 0
        assert (tile.age_s <= 0.5) == (frame >= 10)
    assert {tile.kind for tile in mosaic.tiles} >= {"kept"}
    in_view = deep.table.serials[deep.last_seen[: len(deep)] == 11]
    assert {tile.token for tile in mosaic.tiles} == set(in_view.tolist())
    assert (mosaic.before, mosaic.after) == (12 * CELLS, len(deep))
    assert mosaic.captured_at == 100.5


def test_without_merging_every_cell_of_the_newest_frame_is_a_new_tile(
    tiny_model: VideoLLM,
) -> None:
    session = _session(tiny_model, reducer="none")
    _feed(session, _video(tiny_model, 4), cut=2)
    mosaic = draw_mosaic(session)
    assert len(mosaic.tiles) == CELLS
    assert {(tile.kind, tile.size, tile.age_s) for tile in mosaic.tiles} == {("new", 1, 0.0)}


def test_a_repeated_frame_has_nothing_new(tiny_model: VideoLLM) -> None:
    session = _session(tiny_model)
    _feed(session, _video(tiny_model, 4), cut=2)
    before = draw_mosaic(session)
    session.repeat([100.0])
    after = draw_mosaic(session)
    assert [tile.box for tile in after.tiles] == [tile.box for tile in before.tiles]
    assert "new" not in {tile.kind for tile in after.tiles}
    assert sum(tile.size for tile in after.tiles) > sum(tile.size for tile in before.tiles)
