"""How visual tokens get fewer: one file per published method, found by name. Tensors only, no model, no cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from stream_sttm import registry
from stream_sttm.visual_tokens import VisualTokens

GROUP = "stream_sttm.reducers"
REDUCERS: dict[str, str] = {
    "none": "stream_sttm.reducers.baselines:KeepAll",
    "random": "stream_sttm.reducers.baselines:RandomDrop",
    "subsample": "stream_sttm.reducers.baselines:Subsample",
    "sttm": "stream_sttm.reducers.sttm:Sttm",
    "sttm_streaming": "stream_sttm.reducers.sttm_streaming:SttmStreaming",
}


class ReducerState(Protocol):
    """What a reducer carries from one clip of a stream to the next; immutable, owned by the caller.

    One that knows what stands for each part of the last frame may also have `shown`: boxes (M, 4), y0, x0, y1, x1,
    that tile it, and the serials (M,) of the tokens that stand for them.
    """

    @property
    def absorbed(self) -> tuple[Tensor, Tensor]:
        """What the last call added to tokens of earlier calls: their serials (K,) and cell counts (K,), int64."""
        ...

    @property
    def last_seen(self) -> tuple[Tensor, Tensor]:
        """What stands for something in the last call's frames: serials (K,), and the last such frames (K,)."""
        ...

    def expire(self, gone: Tensor) -> ReducerState:
        """The state after the cache dropped the tokens with the serials `gone` (K,), ascending."""
        ...

    def saved(self) -> dict[str, Tensor]:
        """All that the next call needs, for `restored`."""
        ...

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor]) -> ReducerState:
        """The state that was saved; raises KeyError where something is missing."""
        ...


class Reducer(Protocol):
    """A pure function: same features and state, same result.

    Tokens are numbered by a *serial* in the order in which they are emitted, from 0 at the stream's start: the
    j-th token that a stream ever got has serial j. A state speaks of tokens by serial.

    One that merges with what came before may also have `repeated(state, frames)`: the state after so many more frames
    that show exactly what the last one did, or None where those would give tokens. It saves a still scene all work.
    """

    @property
    def state(self) -> type[ReducerState]:
        """What its states are."""
        ...

    def __call__(self, features: Tensor, state: Any | None = None) -> tuple[VisualTokens, Any]:
        """(T, H, W, C) features of the next frames of a stream -> the tokens to append, and the next state."""
        ...


def build_reducer(name: str, options: Mapping[str, Any] | None = None) -> Reducer:
    """The reducer `name` with `options` as its fields; raises ConfigError for an unknown name or option."""
    cls = registry.find(REDUCERS, GROUP, name, kind="reducer")
    reducer: Reducer = registry.build(cls, options or {}, kind=f"reducer {name!r}")
    return reducer
