"""What leaves a memory can be seen again: the same tokens, in front of it, within the model's positions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stream_sttm.engine.answering.batch import AnswerBatch
from stream_sttm.engine.answering.formats import AnswerFormats
from stream_sttm.engine.plan import MemoryPlan, RecallPlan
from stream_sttm.engine.recall.archive import Archive
from stream_sttm.engine.recall.retrieval import RecallContext, spread_order
from stream_sttm.engine.session import StreamSession
from stream_sttm.engine.snapshot import recall_context, take_view
from stream_sttm.engine.view import View
from stream_sttm.models.family import VideoLLM
from stream_sttm.retention import POLICIES, build_policy
from stream_sttm.types import Question
from tests.engine.test_session import CELLS, PLAN, ROWS, _feed, _session, _video

FRAMES, WINDOW = 24, 2
ALL = RecallPlan(
    when="always", tokens=4096, room=1000, most_bytes=1 << 24, max_age=1e9, folder=None
)
SMALL = replace(
    PLAN,
    horizon=500,
    window_tokens=6 * CELLS,
    shallow_tokens=6 * CELLS,
    evict_share=1e-9,
    recall=ALL,
)


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.inference_mode():
        yield


def _recalling(
    model: VideoLLM, plan: MemoryPlan = SMALL, reducer: str = "none", folder: Path | None = None
) -> StreamSession:
    session = _session(model, plan, reducer)
    session.archive = Archive("cam", most_bytes=1 << 24, max_age=1e9, folder=folder)
    return session


def _question(text: str = "what was there?", **told: object) -> Question:
    return Question(text, "cam", text, 0.0, 8, **told)  # type: ignore[arg-type]


def _past(session: StreamSession) -> RecallContext:
    past = recall_context(session, take_view(session))
    assert past is not None
    return past


def _logits(model: VideoLLM, view: View, text: str) -> Tensor:
    seen: list[Tensor] = []
    batch = AnswerBatch(model, view, [_question(text)], AnswerFormats(model))
    batch._choose_tokens = lambda logits: seen.append(logits) or []  # type: ignore[method-assign,func-returns-value]
    batch.step()
    return seen[0]


@pytest.mark.parametrize("merge_at", [0, 2])
@pytest.mark.parametrize("positions", ["own", "contiguous"])
def test_recalling_everything_shows_what_a_larger_memory_shows(
    tiny_model: VideoLLM, merge_at: int, positions: str
) -> None:
    """Unmerged, the past run again has the keys and values that a memory with room for it has."""
    if positions == "contiguous" and tiny_model.axes > 1:
        pytest.skip("only for one position axis")
    small = replace(SMALL, merge_at=merge_at, positions=positions)
    large = replace(small, window_tokens=FRAMES * CELLS, shallow_tokens=FRAMES * CELLS)
    video = _video(tiny_model, FRAMES).half().float()
    whole, session = _session(tiny_model, large, "none"), _recalling(tiny_model, small)
    for one in (whole, session):
        _feed(one, video, WINDOW)
    view = _past(session).recalled(_question())
    gone = session.cache.deep.evicted
    assert view.recalled == gone == (FRAMES - 6) * CELLS
    assert (view.visual, view.before_merge, view.span) == (
        FRAMES * CELLS,
        FRAMES * CELLS,
        take_view(whole).span,
    )
    assert view.starts == take_view(whole).starts
    part = view.prefix[0]
    snapshot = whole.cache.snapshot()
    for layer in range(4):
        again, first = part.prefix_kv(layer), snapshot.prefix_kv(layer)
        end = again.keys.shape[2]
        torch.testing.assert_close(again.keys, first.keys[:, :, :end], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(again.values, first.values[:, :, :end], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_recallable_is_what_was_emitted_and_is_not_held(
    tiny_model: VideoLLM, policy: str
) -> None:
    plan = replace(SMALL, retention=build_policy(policy))
    session = _recalling(tiny_model, plan, "sttm_streaming")
    _feed(session, _video(tiny_model, 60, seed=4), WINDOW)
    gone, deep = _past(session).evicted, session.cache.deep
    serials = [gone.windows[w].first + r for w, r in zip(gone.owner, gone.row, strict=True)]
    held = set(deep.table.serials.tolist())
    assert sorted(map(int, serials)) == [n for n in range(deep.emitted) if n not in held]
    boxes = torch.stack(
        [gone.windows[w].boxes[r] for w, r in zip(gone.owner, gone.row, strict=True)]
    )
    assert gone.keys(0).shape == (len(gone), 2, tiny_model.kv_shape[1])
    assert bool((boxes[:, 0].diff() >= 0).all())


@pytest.mark.parametrize("merge_at", [0, 2])
def test_survivors_are_kept_as_they_came_from_the_vision_tower(
    tiny_model: VideoLLM, merge_at: int
) -> None:
    plan = replace(SMALL, merge_at=merge_at)
    session = _recalling(tiny_model, plan, "sttm_streaming")
    video = _video(tiny_model, FRAMES)
    video[:, :2, :2] = video[:, :1, :1]  # one node of the quadtree
    _feed(session, video, WINDOW)
    kept = 0
    for window in session.archive._windows:  # type: ignore[union-attr]
        tokens = window.tokens(torch.arange(len(window)))
        for feature, (t, y0, x0, y1, x1) in zip(
            tokens.features, tokens.boxes.tolist(), strict=True
        ):
            mean = video[t, y0:y1, x0:x1].mean((0, 1))
            torch.testing.assert_close(feature.float(), mean, rtol=2e-3, atol=2e-3)
            kept += 1
    assert kept == session.cache.deep.emitted


def test_keys_to_search_by_say_what_was_seen_and_not_when(tiny_model: VideoLLM) -> None:
    session = _recalling(tiny_model)
    still = _video(tiny_model, 1).repeat(FRAMES, 1, 1, 1)
    _feed(session, still, WINDOW)
    keys = _past(session).evicted.keys(0).float()
    torch.testing.assert_close(keys[:CELLS], keys[-CELLS:], rtol=1e-2, atol=1e-2)
    assert not torch.allclose(keys[0], keys[1], atol=1e-2)


def test_a_recalled_view_stays_within_the_models_positions(tiny_model: VideoLLM) -> None:
    grid = (ROWS, ROWS)
    horizon = tiny_model.own_time(8, grid, tiny_model.step(2.0))
    room = tiny_model.own_time(4, grid, tiny_model.step(2.0))
    plan = replace(SMALL, horizon=horizon, rebase_at=2 * horizon, recall=replace(ALL, room=room))
    session = _recalling(tiny_model, plan)
    video = _video(tiny_model, 80)
    lengths = set()
    for start in range(0, 80, WINDOW):
        _feed(session, video[start : start + WINDOW], WINDOW)
        past = recall_context(session, take_view(session))
        if past is None:
            continue
        tokens, _ = past._read_tokens(past._choose_rows(past._relevance(_question())))
        view = past.recalled(_question())
        for group, (time, _) in zip(view.prefix[1].groups, view.starts, strict=True):
            places, begin = past.positions.before(group, tokens, grid)
            assert int(places[0].min()) == begin
            assert int(places[0].max()) < group.origin
            assert time - (begin - group.offset) <= horizon + room + group.values[0].end
            assert group.origin - begin <= room
        lengths.add(view.recalled)
    assert max(lengths) == 4 * CELLS
    if tiny_model.axes == 3:
        assert view.starts[0][1] <= horizon + room + CELLS


def test_parts_of_a_view_may_stand_in_any_order(tiny_model: VideoLLM) -> None:
    session = _recalling(tiny_model, replace(SMALL, fresh_frames=1), "sttm_streaming")
    _feed(session, _video(tiny_model, FRAMES), WINDOW)
    view = _past(session).recalled(_question())
    assert len(view.prefix) == 3
    told = _logits(tiny_model, view, "what?")
    rerotated = replace(view, prefix=view.prefix[::-1])
    torch.testing.assert_close(_logits(tiny_model, rerotated, "what?"), told, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(_logits(tiny_model, take_view(session), "what?"), told, atol=1e-3)


@pytest.mark.parametrize("is_on_disk", [False, True])
def test_whatever_comes_later_changes_nothing_of_a_past_that_was_taken(
    tiny_model: VideoLLM, tmp_path: Path, is_on_disk: bool
) -> None:
    session = _recalling(tiny_model, folder=tmp_path if is_on_disk else None)
    video = _video(tiny_model, 3 * FRAMES)
    _feed(session, video[:FRAMES], WINDOW)
    past = _past(session)
    view = past.recalled(_question())
    before = _logits(tiny_model, view, "what?")
    session.archive._max_age = 1.0  # type: ignore[union-attr]
    _feed(session, video[FRAMES:], WINDOW)
    assert session.archive.span[0] > FRAMES / 2  # type: ignore[union-attr,index]
    assert torch.equal(_logits(tiny_model, view, "what?"), before)
    assert torch.equal(_logits(tiny_model, past.recalled(_question()), "what?"), before)


def test_size_bias_weighs_recalled_tokens_as_it_does_those_remembered(
    tiny_model: VideoLLM,
) -> None:
    plan = replace(SMALL, size_bias=1.0)
    session = _recalling(tiny_model, plan, "sttm_streaming")
    _feed(session, _video(tiny_model, FRAMES), WINDOW)
    view = _past(session).recalled(_question())
    deep, below = view.prefix[0].prefix_kv(3).bias, view.prefix[0].prefix_kv(0).bias
    assert below is None
    assert deep is not None
    pinned = len(tiny_model.preamble())
    assert len(deep) == pinned + view.recalled
    assert float(deep[pinned:].exp().sum()) == pytest.approx(
        view.before_merge - take_view(session).before_merge
    )


def test_the_most_relevant_come_first_and_their_neighbours_last() -> None:
    worth = torch.tensor([0.1, 0.9, 0.8, -torch.inf, 0.2, 0.7])
    at = [0.0, 10.0, 11.0, 12.0, 30.0, 31.0]
    assert list(spread_order(worth, at)) == [1, 5, 0, 2, 4]


def test_tokens_are_cut_to_what_may_be_recalled_at_once(tiny_model: VideoLLM) -> None:
    plan = replace(SMALL, recall=replace(ALL, tokens=CELLS + 3))
    session = _recalling(tiny_model, plan)
    _feed(session, _video(tiny_model, FRAMES), WINDOW)
    past = _past(session)
    assert past.recalled(_question()).recalled == CELLS + 3
    relevance = past._relevance(_question())
    assert relevance.sum() > 0
    (place, rows), *_ = past._choose_rows(relevance)
    assert bool((rows.diff() > 0).all())
    assert place < len(past.evicted.windows)


def test_questions_that_look_back_are_set_aside_and_the_others_are_answered(
    tiny_model: VideoLLM,
) -> None:
    plan = replace(SMALL, recall=replace(ALL, when="auto"))
    session = _recalling(tiny_model, plan)
    _feed(session, _video(tiny_model, FRAMES), WINDOW)
    asked = [_question(), _question("a much longer one: what is there now?", recall="never")]
    known = AnswerFormats(tiny_model)
    plain = AnswerBatch(tiny_model, take_view(session), asked, known)
    probe = _past(session).probe(2)
    tuned = tiny_model.tuned
    try:
        for recall_from, leaving in ((0.0, asked[:1]), (1.1, [])):
            tiny_model.tuned = replace(tuned, recall_from=recall_from)
            batch = AnswerBatch(tiny_model, take_view(session), asked, known, past=_past(session))
            done = batch.step()
            while batch.questions:
                done += batch.step()
            assert batch.looking_back == leaving
            assert 0 < float(batch._probe.shares.min()) <= float(batch._probe.shares.max()) < 1  # type: ignore[union-attr]
            stayed = [one.question for one in done]
            assert sorted(q.text for q in (*stayed, *leaving)) == sorted(q.text for q in asked)
    finally:
        tiny_model.tuned = tuned
    alone = plain.step()
    while plain.questions:
        alone += plain.step()
    assert {one.question.text: one.text for one in alone} == {
        one.question.text: one.text for one in done
    }
    assert probe.shares.tolist() == [0, 0]


def test_a_lookback_probe_is_the_share_of_attention_that_goes_to_what_is_not_there_any_more(
    tiny_model: VideoLLM,
) -> None:
    """Against weights worked out by a plain softmax over everything that is visual."""
    session = _recalling(tiny_model, replace(SMALL, fresh_frames=1), "sttm_streaming")
    _feed(session, _video(tiny_model, FRAMES), WINDOW)
    past = _past(session)
    heads, width = tiny_model.text.config.num_attention_heads, tiny_model.kv_shape[1]
    queries = torch.randn(2, heads, 5, width, generator=torch.Generator().manual_seed(1))
    at, counts = torch.tensor([4, 1]), torch.tensor([True, False])
    probe = past.probe(2)
    for layer in range(4):
        probe.observe(at, counts, layer, queries, 0.3)
    wanted = []
    for layer in range(4):
        snapshot, fresh = past.view.prefix
        pinned = len(tiny_model.preamble())
        keys = torch.cat(
            [snapshot.prefix_kv(layer).keys[:, :, pinned:], fresh.prefix_kv(layer).keys], 2
        )
        keys = keys[0].repeat_interleave(heads // 2, 0)
        weights = (queries[0, :, 4, None] @ keys.transpose(1, 2) * 0.3).softmax(-1)[:, 0]
        is_past = ~past.is_now[0 if layer < 2 else 1]
        wanted.append(weights[:, : len(is_past)][:, is_past].sum(1).mean())
    assert float(probe.shares[0]) == pytest.approx(float(torch.stack(wanted).mean()), rel=1e-4)
    assert float(probe.shares[1]) == 0


def test_frames_that_repeat_bring_nothing_into_the_archive_and_what_is_too_old_leaves_it(
    tiny_model: VideoLLM,
) -> None:
    session = _recalling(tiny_model, replace(SMALL, merge_at=2), "sttm_streaming")
    session.archive = archive = Archive("cam", most_bytes=1 << 24, max_age=20.0)
    _feed(session, _video(tiny_model, FRAMES), WINDOW)
    before = len(archive), archive.nbytes, session.cache.deep.emitted
    session.repeat([FRAMES / 2, FRAMES / 2 + 0.5])
    assert (len(archive), archive.nbytes, session.cache.deep.emitted) == before
    session.repeat([30.0])
    assert 0 < len(archive) < before[0]
    assert archive.span is not None
    assert archive.span[0] >= 30 - 20 - WINDOW / 2


def test_what_stands_still_is_there_now_in_every_layer_however_long(tiny_model: VideoLLM) -> None:
    session = _recalling(tiny_model, replace(SMALL, merge_at=2), "sttm_streaming")
    _feed(session, _video(tiny_model, FRAMES), WINDOW)
    shallow = session.cache.groups[0]
    for at in range(FRAMES // 2, FRAMES // 2 + 10):
        session.repeat([float(at)])
    is_newest = shallow.table.frames == FRAMES - 1
    below, above = _past(session).is_now
    assert below.tolist() == is_newest.tolist()
    assert bool(below.any())
    assert 0 < int(above.sum()) <= CELLS


def test_a_follow_up_is_searched_for_by_its_own_words_in_the_light_of_those_before(
    tiny_model: VideoLLM,
) -> None:
    session = _recalling(tiny_model)
    _feed(session, _video(tiny_model, FRAMES), WINDOW)
    past, turns = _past(session), (("what was in the road?", "a red car"),)
    alone = past._query_words(_question("and then?"), (0, 2))
    behind = past._query_words(_question("and then?", turns=turns), (0, 2))
    assert [one.shape for one in behind] == [one.shape for one in alone]
    closing = len(tiny_model._closing)
    torch.testing.assert_close(behind[0][:, -closing:], alone[0][:, -closing:])
    assert not torch.allclose(behind[1], alone[1])
