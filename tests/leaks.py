"""Counting what must not grow: threads and file descriptors of this process."""

import asyncio
import os
import threading
import time


def open_files():
    return len(os.listdir("/proc/self/fd"))


def threads():
    """How many threads run, FFmpeg's among them, without asyncio's own pool, which lives as long as its loop."""
    pool = [t for t in threading.enumerate() if t.name.startswith("asyncio_")]
    return len(os.listdir("/proc/self/task")) - len(pool)


async def until(condition, seconds=10.0):
    """Wait until `condition()` holds; False when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True
