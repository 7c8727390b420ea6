"""What fails in the engine, as errors of our own that hold on to nothing."""

from __future__ import annotations

import logging

import torch

from stream_sttm.errors import ModelError, OutOfMemory, StreamSTTMError

_log = logging.getLogger(__name__)


def detached(error: Exception, work: str) -> StreamSTTMError:
    """Return an error that `work` ended with as one of our own.

    It refers to no frame of the stack. So the tensors in these frames are free as soon as `error` is.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return OutOfMemory(
            "the device ran out of memory; fewer streams or a smaller memory.window_tokens help"
        )
    if isinstance(error, StreamSTTMError):
        error.__traceback__ = error.__context__ = error.__cause__ = None
        return error
    _log.error("engine: %s failed", work, exc_info=error)
    return ModelError(f"the model failed: {(str(error) or repr(error)).splitlines()[0]}")
