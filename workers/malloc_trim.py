"""Memory that the C library holds free, given back to the system: a service that runs for weeks is what it keeps.

glibc returns by itself only what lies free at the end of a heap, so pieces between what is kept add up over hours.
"""

from __future__ import annotations

import asyncio
import ctypes

EVERY = 60.0  # seconds
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone


def give_back() -> bool:
    """Return what is free, wherever it lies; some milliseconds. False where the C library can't."""
    if _trim is None:
        return False
    _trim(0)
    return True


async def stay_small(every: float = EVERY) -> None:
    """Give back every so many seconds until cancelled; returns where the C library can't."""
    can = True
    while can:
        await asyncio.sleep(every)
        can = await asyncio.to_thread(give_back)
