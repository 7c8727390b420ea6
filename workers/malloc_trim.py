"""Returns free memory of the C library to the system.

glibc returns by itself only what is free at the end of a heap. Free pieces between used ones add up over hours.
"""

from __future__ import annotations

import asyncio
import ctypes

EVERY = 60.0  # seconds
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone


def trim() -> bool:
    """Return free memory to the system, which takes some milliseconds. Returns False where the C library can't."""
    if _trim is None:
        return False
    _trim(0)
    return True


async def trim_regularly(every: float = EVERY) -> None:
    """Trim every `every` seconds until cancelled. Returns at once where the C library can't."""
    can = True
    while can:
        await asyncio.sleep(every)
        can = await asyncio.to_thread(trim)
