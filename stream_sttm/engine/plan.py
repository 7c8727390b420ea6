"""How a memory is laid out: the configuration, completed by the model's own defaults."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from stream_sttm.config.recall import RecallSettings
from stream_sttm.config.settings import MemorySettings, ReducerSettings
from stream_sttm.errors import ConfigError
from stream_sttm.models.family import VideoLLM
from stream_sttm.reducers import Reducer, build_reducer
from stream_sttm.retention import RetentionPolicy, build_policy

_LEAST_FOR_A_QUESTION = 64  # positions
_RECALL_SHARE = 0.25  # of the horizon, left free for what is recalled


@dataclass(frozen=True, slots=True)
class RecallPlan:
    """What a question may bring back.

    It brings back at most `tokens`, on `room` positions that the memory leaves free for them. At most `log` earlier
    answers are put before it. A stream's archive holds at most `most_bytes`, and nothing older than `max_age` seconds.
    It is in `folder`, or in host memory where that is None.
    """

    when: Literal["auto", "always"]
    tokens: int
    room: int
    most_bytes: int
    max_age: float
    folder: Path | None
    log: int = 0


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How a memory is laid out. Every number is resolved, nothing is left to a default.

    `horizon`: positions that a memory may span. `rebase_at`: position past which stored keys are moved back.
    `question_tokens`: positions left to a question and its answer, so that nothing stands beyond the model's own
    positions.
    """

    merge_at: int
    window_tokens: int
    shallow_tokens: int
    horizon: int
    rebase_at: int
    question_tokens: int
    evict_share: float
    size_bias: float
    fresh_frames: int
    positions: Literal["own", "contiguous"]
    prune_shallow: bool
    retention: RetentionPolicy
    kv: Literal["auto", "int8", "fp8"]
    recall: RecallPlan | None = None


def plan_for(model: VideoLLM, reducer: ReducerSettings, memory: MemorySettings) -> MemoryPlan:
    """Return the layout of a memory: the configuration, and the model's own defaults where it is silent.

    Raises ConfigError for a merge layer that the model doesn't have, or a horizon beyond its positions.
    """
    tuned, layers = model.tuned, len(model.layers)
    merge_at = tuned.at_layer if reducer.at_layer is None else reducer.at_layer
    if reducer.at_layer is None:
        merge_at = min(merge_at, layers - 1)
    if merge_at >= layers:
        raise ConfigError(
            f"reducer.at_layer: {merge_at} is beyond the model's last layer, {layers - 1}"
        )
    horizon = memory.horizon or tuned.horizon or model.context * 3 // 4
    room = (model.context - horizon) // 2
    if room < _LEAST_FOR_A_QUESTION:
        raise ConfigError(
            f"memory.horizon: {horizon} is beyond what the model's {model.context} positions allow beside questions; "
            f"at most {model.context - 2 * _LEAST_FOR_A_QUESTION}"
        )
    shallow = memory.shallow_tokens or memory.window_tokens
    if memory.prune_shallow and shallow != memory.window_tokens:
        raise ConfigError(
            f"memory.shallow_tokens: with prune_shallow all layers hold the same tokens; "
            f"leave it out, or set it to {memory.window_tokens}"
        )
    positions = memory.positions or tuned.positions
    if positions == "contiguous" and model.axes > 1:
        raise ConfigError("contiguous positions need a model with one position axis")
    recall = _recall_plan(memory.recall, horizon)
    if recall is not None and recall.log and not tuned.instruct:
        raise ConfigError(
            "memory.recall.log: the model follows no instructions and was never shown text before a question; "
            "leave it at 0"
        )
    return MemoryPlan(
        merge_at=merge_at,
        window_tokens=memory.window_tokens,
        shallow_tokens=shallow,
        horizon=horizon - (recall.room if recall else 0),
        rebase_at=horizon + room,
        question_tokens=room,
        evict_share=memory.evict_share,
        size_bias=tuned.size_bias if reducer.size_bias is None else reducer.size_bias,
        fresh_frames=tuned.fresh_frames if memory.fresh_frames is None else memory.fresh_frames,
        positions=positions,
        prune_shallow=memory.prune_shallow,
        retention=build_policy(memory.retention.name, memory.retention.options),
        kv=memory.kv,
        recall=recall,
    )


def with_room(horizon: int) -> int:
    """Return the horizon that leaves a memory `horizon` positions beside those for recalled tokens."""
    return -int(-horizon // (1 - _RECALL_SHARE))


def _recall_plan(recall: RecallSettings, horizon: int) -> RecallPlan | None:
    """Return the plan for recall, None where nothing is ever recalled.

    That costs nothing: no archive, and the whole horizon.
    """
    if recall.when == "never":
        return None
    return RecallPlan(
        when=recall.when,
        tokens=recall.tokens,
        room=int(horizon * _RECALL_SHARE),
        most_bytes=recall.bytes,
        max_age=recall.max_age,
        folder=None if recall.dir is None else Path(recall.dir),
        log=recall.log,
    )


def reducer_for(model: VideoLLM, settings: ReducerSettings, rate: float) -> Reducer:
    """Return the configured reducer for a stream with `rate` token frames per second."""
    return build_reducer(settings.name, settings.options, tuned=asdict(model.tuned), rate=rate)
