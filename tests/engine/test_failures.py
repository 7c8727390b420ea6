"""Which errors of a device are for good, which are want of room, and which are the work's own."""

from __future__ import annotations

import pytest
import torch

from stream_sttm.engine.answering.isolation import alone
from stream_sttm.engine.answering.sequence import Completion
from stream_sttm.engine.failures import detached
from stream_sttm.errors import ConfigError, DeviceLost, ModelError, OutOfMemory
from stream_sttm.types import Question


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), DeviceLost),
        (torch.AcceleratorError("unspecified launch failure"), DeviceLost),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), DeviceLost),
        (RuntimeError("HIP error: unspecified launch failure"), DeviceLost),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling x"), DeviceLost),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), DeviceLost),
        (torch.AcceleratorError("CUDA error: out of memory"), OutOfMemory),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), OutOfMemory),
        (RuntimeError("CUDA error: invalid configuration argument"), ModelError),
        (RuntimeError("shapes do not match"), ModelError),
        (ValueError("CUDA error is what the user wrote"), ModelError),
        (ConfigError("reducer.budget: CUDA error"), ConfigError),
    ],
)
def test_an_error_is_told_by_what_can_be_done_about_it(
    error: Exception, kind: type[Exception]
) -> None:
    failure = detached(error, "append")
    assert type(failure) is kind
    assert failure.__traceback__ is None
    assert failure.__context__ is None
    assert "\n" not in str(failure)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        torch.OutOfMemoryError(),
    ],
)
def test_a_fault_of_the_device_is_not_taken_for_one_question_s_own(error: Exception) -> None:
    failed: list[Completion] = []
    with pytest.raises(type(error)), alone(Question("q", "s", "?", 0.0, 1), failed):
        raise error
    assert failed == []
