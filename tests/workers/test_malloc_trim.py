"""What is free goes back to the system, by a call and by itself."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from workers import malloc_trim

MEGABYTE = 1 << 20
pytestmark = pytest.mark.skipif(malloc_trim._trim is None, reason="not glibc")


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _hollow() -> list[bytes]:
    """What is left of 100 MB of small pieces when 98 % of them are free again, none of it at the heap's end."""
    pieces = [bytes(1000) for _ in range(100_000)]
    return pieces[::50]


def _given_back(give_back: Callable[[], object]) -> int:
    malloc_trim.trim()
    before = _resident()
    kept = _hollow()
    hollow = _resident()
    give_back()
    after = _resident()
    assert len(kept) == 2000
    assert hollow - before > 90 * MEGABYTE, "the C library held nothing to give back"
    return hollow - after


def test_what_lies_free_between_what_is_kept_goes_back() -> None:
    assert _given_back(malloc_trim.trim) > 70 * MEGABYTE


def test_the_service_gives_back_again_and_again() -> None:
    async def run() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await malloc_trim.trim_regularly(0.05)

    assert _given_back(lambda: asyncio.run(run())) > 70 * MEGABYTE


def test_where_the_c_library_can_not_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(malloc_trim, "_trim", None)
    assert not malloc_trim.trim()
    asyncio.run(asyncio.wait_for(malloc_trim.trim_regularly(0.01), 5.0))
