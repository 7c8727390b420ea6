"""Token reduction: one file per published method, found by name. Tensors only, no model, no cache."""

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
    """What a reducer carries from one clip of a stream to the next. It is immutable and owned by the caller.

    A state may also have `shown`: boxes (M, 4) and serials (M,). The boxes, y0, x0, y1, x1, tile the last frame. The
    serials are those of the tokens that stand for them.
    """

    @property
    def absorbed(self) -> tuple[Tensor, Tensor]:
        """What the last call added to tokens of earlier calls: their serials (K,) and cell counts (K,), int64."""
        ...

    @property
    def last_seen(self) -> tuple[Tensor, Tensor]:
        """The tokens that stand for something in the last call's frames: serials (K,), and the last such frames
        (K,).
        """
        ...

    def expire(self, evicted: Tensor) -> ReducerState:
        """Return the state after the cache evicted the tokens with the serials `evicted` (K,), ascending."""
        ...

    def saved(self) -> dict[str, Tensor]:
        """Return all that the next call needs, for `restored`."""
        ...

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor]) -> ReducerState:
        """Return the state that was saved. Raises KeyError where something is missing."""
        ...


class Reducer(Protocol):
    """A pure function: the same features and state give the same result.

    Tokens are numbered by a *serial* in the order in which they are emitted, from 0 at the stream's start. The j-th
    token that a stream ever got has serial j. A state refers to tokens by serial.

    A reducer may also have these:

    - `tuned_options`: a tuple of option names. An option that the configuration leaves out takes the model's own
      default of the same name (see `stream_sttm.models.family.Defaults`), such as `spatial_threshold`.
    - `timed_options`: a mapping from option names to functions of the configured value and the token frames per second.
      They return the field's value. So an option can be in seconds where the field counts frames (see
      `frames.seconds_to_frames`).
    - `repeated(state, frames)`: a method that returns the state after so many more frames that equal the last one. It
      returns None where such frames would give tokens. It saves a still scene all work.
    """

    @property
    def state(self) -> type[ReducerState]:
        """The type of its states."""
        ...

    def __call__(self, features: Tensor, state: Any | None = None) -> tuple[VisualTokens, Any]:
        """Reduce features (T, H, W, C) of a stream's next frames. Returns the tokens to append, and the next state."""
        ...


def build_reducer(
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    tuned: Mapping[str, Any] | None = None,
    rate: float | None = None,
) -> Reducer:
    """Return the reducer `name` with `options` as its fields.

    `tuned`: a model's own defaults by name, for the class's `tuned_options` that `options` leave out. `rate`: the
    stream's token frames per second, for its `timed_options`, which None leaves as they are. Raises ConfigError for an
    unknown name or option, and for a value that does not fit.
    """
    cls = registry.find(REDUCERS, GROUP, name, kind="reducer")
    filled = dict(options or {})
    for option in getattr(cls, "tuned_options", ()):
        if tuned is not None and option in tuned:
            filled.setdefault(option, tuned[option])
    for option, at_rate in getattr(cls, "timed_options", {}).items():
        if rate is not None and option in filled:
            filled[option] = at_rate(filled[option], rate)
    reducer: Reducer = registry.build(cls, filled, kind=f"reducer {name!r}")
    return reducer
