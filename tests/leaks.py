"""Counting what must not grow: threads and file descriptors of this process."""

import asyncio
import os
import threading
import time


def open_files():
    return len(os.listdir("/proc/self/fd"))


def threads():
    """Our threads, without asyncio's own pool, whose size is bounded and which lives as long as its loop."""
    return [t for t in threading.enumerate() if not t.name.startswith("asyncio_")]


async def until(condition, seconds=10.0):
    """Wait until `condition()` holds; False when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True
