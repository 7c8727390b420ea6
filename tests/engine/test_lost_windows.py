"""A window that fails, wherever it fails, leaves its memory as if it had never come, and holds on to nothing."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stream_sttm.config.settings import MemorySettings
from stream_sttm.engine.cache.kv_buffer import KVBuffer
from stream_sttm.engine.cache.layer_group import LayerGroup
from stream_sttm.engine.engine import _HOPELESS, Engine
from stream_sttm.engine.outcomes import Lost, Observed
from stream_sttm.engine.plan import RecallPlan
from stream_sttm.engine.recall.archive import Archive
from stream_sttm.engine.session import StreamSession
from stream_sttm.errors import OutOfMemory
from stream_sttm.models.family import VideoLLM
from stream_sttm.retention import build_policy
from stream_sttm.types import Clip, Frame
from tests.engine.test_session import CELLS, PLAN, _first_logits, _session, _video

RECALL = RecallPlan("auto", 64, 100, 1 << 20, 1e9, None)
PLANS = {
    "plain": PLAN,
    "full": replace(PLAN, window_tokens=4 * CELLS, shallow_tokens=4 * CELLS, rebase_at=120),
    "pruned": replace(
        PLAN,
        prune_shallow=True,
        window_tokens=4 * CELLS,
        shallow_tokens=4 * CELLS,
        retention=build_policy("lru"),
        size_bias=1.0,
        kv="int8",
    ),
    "recall": replace(PLAN, merge_at=0, window_tokens=4 * CELLS, recall=RECALL),
}
STEPS = {
    "make room": (StreamSession, "_make_room"),
    "rewrite": (KVBuffer, "copy_rows"),
    "shallow": (StreamSession, "_run_shallow"),
    "write": (LayerGroup, "write"),
    "commit": (LayerGroup, "commit"),
    "reduce": (StreamSession, "_reduce"),
    "absorb": (LayerGroup, "absorb"),
    "deep": (StreamSession, "_run_deep"),
    "archive entry": (StreamSession, "_archive_entry"),
    "mark seen": (LayerGroup, "mark_seen"),
    "prune": (StreamSession, "_prune_shallow"),
    "move": (KVBuffer, "move"),
    "advance": (StreamSession, "_advance"),
    "archive": (Archive, "_offload_features"),
}


class InjectedError(RuntimeError):
    """A failure that a test injects."""


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.inference_mode():
        yield


def _watching(model: VideoLLM, plan: str) -> StreamSession:
    session = _session(model, PLANS[plan])
    if plan == "recall":
        session.archive = Archive("cam", most_bytes=1 << 20, max_age=1e9)
    return session


def _show(session: StreamSession, window: Tensor) -> None:
    first = session.frames
    session.append(window, [float(first + i) / 2 for i in range(len(window))])


def _repeat(session: StreamSession) -> None:
    session.repeat([session.frames / 2, (session.frames + 1) / 2])


def _all_of(session: StreamSession) -> dict[str, Any]:
    """All that a memory is: tensors as they are saved, and what is archived."""
    saved = {name: part.clone() for name, part in session.saved().items()}
    for group in session.cache.groups:
        saved[f"written.{group.first}"] = torch.tensor(group.written)
    if session.archive is not None:
        saved["archived"] = torch.tensor([len(session.archive), session.archive.nbytes])
    return saved


def _equal(ours: StreamSession, wanted: StreamSession) -> bool:
    mine, others = _all_of(ours), _all_of(wanted)
    return mine.keys() == others.keys() and all(
        torch.equal(part, others[name]) for name, part in mine.items()
    )


def _failing(
    monkeypatch: pytest.MonkeyPatch, step: str, *, after: bool, skip: int = 0
) -> Callable[[], int]:
    """Let a step fail, before or after it is done, from its call number `skip` on. Returns how often it failed."""
    owner, name = STEPS[step]
    original, calls, failed = getattr(owner, name), 0, 0

    def fails(*arguments: Any, **named: Any) -> Any:
        nonlocal calls, failed
        calls += 1
        if after or calls <= skip:
            done = original(*arguments, **named)
            if calls <= skip:
                return done
        failed += 1
        raise InjectedError(step)

    monkeypatch.setattr(owner, name, fails)
    return lambda: failed


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("after", [False, True])
def test_a_failure_at_any_step_of_a_window_leaves_what_a_memory_that_never_saw_it_has(
    tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch, plan: str, after: bool
) -> None:
    video, reached = _video(tiny_model, 20), set()
    spared, hit = (_watching(tiny_model, plan) for _ in range(2))
    for session in (spared, hit):
        for start in range(0, 10, 2):
            _show(session, video[start : start + 2])
    for step in STEPS:
        for skip, work in ((0, _show), (1, _show), (0, None)):
            with monkeypatch.context() as patch:
                failures = _failing(patch, step, after=after, skip=skip)
                with suppress(InjectedError):
                    _show(hit, video[16:18]) if work else _repeat(hit)
                if not failures():  # the step is not part of this window: it went well
                    patch.undo()
                    _show(spared, video[16:18]) if work else _repeat(spared)
                reached |= {step} if failures() else set()
            assert _equal(hit, spared), (step, skip)
    assert reached >= {"make room", "shallow", "reduce", "deep", "mark seen", "prune", "advance"}
    if plan in ("full", "pruned"):
        assert "rewrite" in reached
    for session in (spared, hit):
        _show(session, video[10:12])
        _repeat(session)
        _show(session, video[12:16])
    assert _equal(hit, spared)
    texts = ("what is there?", "how many?")
    for text in texts:
        assert torch.equal(
            _first_logits(tiny_model, hit, text), _first_logits(tiny_model, spared, text)
        )


def _clip(index: int, side: int = 48, **more: Any) -> Clip:
    image = np.random.default_rng(index).integers(0, 255, (side, side, 3), dtype=np.uint8)
    frames = tuple(Frame("door", image, index + i / 2, 900.0 + index + i / 2) for i in range(2))
    return Clip("door", index, frames, **more)


def _engine(model: VideoLLM, **memory: Any) -> Engine:
    engine = Engine(model, memory=MemorySettings(**{"window_tokens": 512, **memory}))
    engine.open("door", fps=2)
    return engine


def _step(engine: Engine, clip: Clip) -> Any:
    engine.observe(clip)
    [outcome] = engine.step()
    return outcome


def _memory(engine: Engine) -> StreamSession:
    session = engine.sessions.of("door")
    assert session is not None
    return session


def test_a_clip_that_can_not_be_encoded_touches_no_memory_and_makes_none(
    tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> Tensor:
        raise InjectedError("encode")

    spared, hit, fresh = (_engine(tiny_model) for _ in range(3))
    for engine in (spared, hit):
        assert isinstance(_step(engine, _clip(0)), Observed)
    before = _memory(hit)
    with monkeypatch.context() as patch:
        patch.setattr(tiny_model, "encode", fail)
        assert isinstance(_step(hit, _clip(1)), Lost)
        assert isinstance(_step(fresh, _clip(0)), Lost)
    assert _memory(hit) is before
    assert _equal(_memory(hit), _memory(spared))
    assert fresh.sessions.of("door") is None
    for engine in (spared, hit):  # what repeats a clip that was lost is encoded
        assert isinstance(_step(engine, _clip(2, same_as=1)), Observed)
    assert _equal(_memory(hit), _memory(spared))


def test_a_window_larger_than_a_memory_that_has_others_leaves_these(tiny_model: VideoLLM) -> None:
    if tiny_model.axes == 1:
        pytest.skip("this family resizes every picture to one grid")
    engine = _engine(tiny_model, window_tokens=16)
    assert isinstance(_step(engine, _clip(0, side=32)), Observed)
    before = _all_of(_memory(engine))
    for index in range(1, _HOPELESS + 2):
        assert isinstance(_step(engine, _clip(index, side=64)), Lost)
    assert all(torch.equal(part, before[name]) for name, part in _all_of(_memory(engine)).items())


def test_a_memory_to_which_nothing_can_be_added_for_long_is_made_anew(
    tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _engine(tiny_model)
    assert isinstance(_step(engine, _clip(0)), Observed)
    before = _memory(engine)
    with monkeypatch.context() as patch:
        _failing(patch, "reduce", after=False)
        for index in range(1, _HOPELESS):
            assert isinstance(_step(engine, _clip(index)), Lost)
            assert _memory(engine) is before
        _step(engine, _clip(_HOPELESS))
        assert engine.sessions.of("door") is None
    assert isinstance(_step(engine, _clip(_HOPELESS + 1)), Observed)


@pytest.mark.parametrize("step", ["write", "reduce"])
def test_the_devices_memory_is_given_back_when_nothing_holds_what_failed(
    tiny_model: VideoLLM, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    engine, held = _engine(tiny_model), list[weakref.ref[Tensor]]()
    assert isinstance(_step(engine, _clip(0)), Observed)
    owner, name = STEPS[step]
    alive_then = []

    def full(_: object, values: Tensor, *__: object) -> Any:
        failed = values.clone()
        held.append(weakref.ref(failed))
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(owner, name, full)
    monkeypatch.setattr(
        torch.cuda, "empty_cache", lambda: alive_then.extend(one() is not None for one in held)
    )
    gc.disable()  # nothing may wait for a collection
    try:
        lost = _step(engine, _clip(1))
    finally:
        gc.enable()
    assert isinstance(lost, Lost)
    assert isinstance(lost.error, OutOfMemory)
    assert alive_then == [False]
