"""What fails in the engine, as errors of our own that hold on to nothing."""

from __future__ import annotations

import logging

import torch

from stream_sttm.errors import DeviceLost, ModelError, OutOfMemory, StreamSTTMError

_log = logging.getLogger(__name__)
# What the words of an error begin with, or hold, after which a device's context is gone for this process.
_LOST = (
    "cuda error",
    "cuda driver error",
    "hip error",
    "device-side assert",
    "illegal memory access",
    "unspecified launch failure",
    "cublas_status_execution_failed",
    "cublas_status_internal_error",
    "cudnn_status_execution_failed",
)
# Errors in the same words after which it works on: a call that was wrong in itself.
_HARMLESS = ("invalid configuration argument", "invalid argument", "no kernel image")
_FULL = "out of memory"


def is_of_device(error: BaseException) -> bool:
    """Return whether an error is the device's own, and so concerns everything that runs there."""
    words = str(error).lower()
    is_known = isinstance(error, torch.AcceleratorError) or any(word in words for word in _LOST)
    return is_known and isinstance(error, RuntimeError)


def detached(error: BaseException, work: str) -> StreamSTTMError:
    """Return an error that `work` ended with as one of our own.

    It refers to no frame of the stack. So the tensors in these frames are free as soon as `error` is.
    """
    words, is_device = str(error).lower(), is_of_device(error)
    if isinstance(error, torch.OutOfMemoryError) or (is_device and _FULL in words):
        return OutOfMemory(
            "the device ran out of memory; fewer streams or a smaller memory.window_tokens help"
        )
    if isinstance(error, StreamSTTMError):
        error.__traceback__ = error.__context__ = error.__cause__ = None
        return error
    _log.error("engine: %s failed", work, exc_info=error)
    line = (str(error) or repr(error)).splitlines()[0]
    if is_device and not any(word in words for word in _HARMLESS):
        return DeviceLost(
            f"the device does nothing more for this process, which has to end: {line}"
        )
    return ModelError(f"the model failed: {line}")
