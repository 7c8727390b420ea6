"""Counting what must not grow: threads and file descriptors of this process, and the processes below it."""

import asyncio
import os
import threading
import time
from pathlib import Path


def open_files():
    return len(os.listdir("/proc/self/fd"))


def threads():
    """How many threads run, FFmpeg's among them, without asyncio's own pool, which lives as long as its loop."""
    pool = [t for t in threading.enumerate() if t.name.startswith("asyncio_")]
    return len(os.listdir("/proc/self/task")) - len(pool)


def decoders():
    """Return the process ids of the decoders that work for this process."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = status.read_text().rpartition(")")
        except OSError:  # it has just ended
            continue
        parents[int(status.parent.name)] = (int(rest.split()[1]), name.partition("(")[2])
    return [
        pid
        for pid, (parent, name) in parents.items()
        if name.startswith("decode ") and parents.get(parent, (0, ""))[0] == os.getpid()
    ]


async def until(condition, seconds=10.0):
    """Wait until `condition()` holds; False when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True
