"""What leaves a memory can be seen again: the same tokens, in front of the memory, within its positions, undisturbed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stream_sttm.engine.answering import AnswerBatch
from stream_sttm.engine.archive import Archive
from stream_sttm.engine.plan import MemoryPlan, RecallPlan
from stream_sttm.engine.recall import Past, box_means, in_turn, unturned
from stream_sttm.engine.session import StreamSession
from stream_sttm.engine.view import View
from stream_sttm.models.family import VideoLLM
from stream_sttm.retention import POLICIES, build_policy
from stream_sttm.tokens import VisualTokens
from stream_sttm.types import Question
from tests.test_session import CELLS, PLAN, ROWS, _feed, _session, _video

FRAMES, WINDOW = 24, 2
ALL = RecallPlan(
    when="always", tokens=4096, room=1000, most_bytes=1 << 24, max_age=1e9, folder=None
)
SMALL = replace(
    PLAN, horizon=500, window_tokens=6 * CELLS, shallow_tokens=6 * CELLS, evict_share=1e-9, recall=ALL
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


def _past(session: StreamSession) -> Past:
    past = session.past(session.view())
    assert past is not None
    return past


def _logits(model: VideoLLM, view: View, text: str) -> Tensor:
    seen: list[Tensor] = []
    batch = AnswerBatch(model, view, [_question(text)])
    batch._take = lambda hidden: seen.append(model.logits(hidden)) or []  # type: ignore[method-assign,func-returns-value]
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
        whole.view().span,
    )
    assert view.starts == whole.view().starts
    part = view.prefix[0]
    snapshot = whole.cache.snapshot()
    for layer in range(4):
        again, first = part.shared(layer), snapshot.shared(layer)
        end = again.keys.shape[2]
        torch.testing.assert_close(again.keys, first.keys[:, :, :end], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(again.values, first.values[:, :, :end], rtol=1e-3, atol=1e-3)
    told = _logits(tiny_model, view, "what was there?")
    torch.testing.assert_close(
        told, _logits(tiny_model, whole.view(), "what was there?"), rtol=1e-2, atol=1e-2
    ) if merge_at == -1 else None
