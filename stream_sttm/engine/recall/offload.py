"""Tensors on disk, one behind another in unnamed files. A file lives as long as a tensor in it is referred to.

A file is unlinked as soon as it is open. So nothing is left behind, however the process ends. Its disk space is free
again when the last tensor in it is dropped. Knows nothing of what is stored.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


class _Segment:
    """One unnamed file. It is closed when nobody refers to it any more."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._descriptor, path = tempfile.mkstemp(prefix="stream-sttm-", dir=folder)
        weakref.finalize(self, os.close, self._descriptor)
        os.unlink(path)
        self.length = 0

    def write(self, content: bytes) -> int:
        """Append `content` and return where it begins. What a full disk cuts short is overwritten later."""
        start, done = self.length, 0
        while done < len(content):
            done += os.pwrite(self._descriptor, content[done:], start + done)
        self.length = start + done
        return start

    def read(self, start: int, count: int) -> bytearray:
        content = bytearray()
        while len(content) < count:
            piece = os.pread(self._descriptor, count - len(content), start + len(content))
            if not piece:
                raise OSError(f"only {len(content)} of {count} bytes are there")
            content += piece
        return content


@dataclass(frozen=True, slots=True, eq=False)
class OffloadedTensor:
    """A tensor on disk."""

    segment: _Segment
    start: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes it takes on disk."""
        return self.shape.numel() * self.dtype.itemsize

    def read(self) -> Tensor:
        """Return the tensor, on the CPU. Raises OSError where the disk can't be read."""
        content = self.segment.read(self.start, self.nbytes)
        return torch.frombuffer(content, dtype=self.dtype).reshape(self.shape)


class DiskOffload:
    """Stores tensors in `folder`, in files of about `segment_bytes` each."""

    def __init__(self, folder: Path, *, segment_bytes: int) -> None:
        self._folder, self._segment_bytes = folder, segment_bytes
        self._segment: _Segment | None = None

    def put(self, tensor: Tensor) -> OffloadedTensor:
        """Write a tensor that is not empty. Raises OSError where the disk can't be written."""
        if self._segment is None or self._segment.length >= self._segment_bytes:
            self._segment = _Segment(self._folder)
        content = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        start = self._segment.write(content)
        return OffloadedTensor(self._segment, start, tensor.shape, tensor.dtype)
