"""The publishers of streams: at most one peer per stream, and a limit on offers per second.

Takes the offers that came over HTTP and keeps the peers. A peer (peer.py) is imported with the first offer, because
the extra `webrtc` need not be installed. Knows nothing of HTTP: api/whip.py speaks it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from stream_sttm.errors import AlreadyPublished, NotAnOffer, PublishError, TooManyOffers

if TYPE_CHECKING:
    from stream_sttm.sources.webrtc.peer import Publisher

OFFERS, PER = 20, 10.0  # offers for one stream that are looked at, in so many seconds

logger = logging.getLogger(__name__)


@dataclass
class _Slot:
    """The slot of one stream's publisher, and when offers came (monotonic)."""

    publisher: Publisher | None = None
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    offers: deque[float] = field(default_factory=lambda: deque(maxlen=OFFERS))


class Publishers:
    """The publishers of `streams`. Takes offers while entered, and closes every peer when left."""

    def __init__(self, streams: Iterable[str] = ()) -> None:
        self._slots: dict[str, _Slot] = {}
        self._stack = AsyncExitStack()
        self._group: asyncio.TaskGroup
        self.follow(streams)

    async def __aenter__(self) -> Self:
        self._group = await self._stack.enter_async_context(asyncio.TaskGroup())
        return self

    async def __aexit__(self, *error: object) -> None:
        for slot in self._slots.values():
            if slot.publisher is not None and slot.publisher.task is not None:
                slot.publisher.task.cancel()
        await self._stack.aclose()

    def follow(self, streams: Iterable[str]) -> None:
        """Take publishers of these streams alone from now on. Publishers of others are ended by their sources."""
        self._streams = frozenset(streams)
        for stream in self._streams:
            self._slots.setdefault(stream, _Slot())

    def takes(self, stream: str) -> bool:
        """Return whether publishers of the stream are taken."""
        return stream in self._streams

    async def publish(self, stream: str, offer: str) -> tuple[str, str]:
        """Take an offer. Returns the session's id and our SDP answer. Raises PublishError."""
        slot, now = self._slots[stream], time.monotonic()
        if len(slot.offers) == OFFERS and now - slot.offers[0] < PER:
            raise TooManyOffers(f"more than {OFFERS} offers in {PER:g} s for stream {stream!r}")
        slot.offers.append(now)
        if slot.publisher is not None:
            raise AlreadyPublished(f"stream {stream!r} has a publisher; end its session first")
        try:
            from stream_sttm.sources.webrtc.peer import Publisher, usable
        except ModuleNotFoundError as error:
            raise PublishError(
                f"publishing needs the package {error.name!r}: pip install 'stream-sttm[webrtc]'"
            ) from error
        offer = usable(offer)
        publisher = slot.publisher = Publisher(stream)
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        serving = self._serve(slot, publisher, offer, answer)
        publisher.task = self._group.create_task(serving, name=f"whip[{stream}]")
        return publisher.id, await asyncio.shield(answer)

    async def _serve(
        self, slot: _Slot, publisher: Publisher, offer: str, answer: asyncio.Future[str]
    ) -> None:
        """Serve a publisher from its offer to its end."""
        describing = asyncio.create_task(publisher.answer(offer), name="answer")
        try:
            # cancelled half-way, or closed meanwhile, it would lose its sockets
            answer.set_result(await asyncio.shield(describing))
            await publisher.run(slot.connected)
        except NotAnOffer as error:
            answer.set_exception(error)
        except Exception as error:
            logger.exception("whip: unexpected")
            if not answer.done():
                answer.set_exception(PublishError(f"unexpected {type(error).__name__}"))
        finally:
            await asyncio.wait([describing])
            slot.connected.clear()
            slot.publisher = None
            answer.cancel()
            await publisher.close()

    async def end(self, stream: str, session: str) -> bool:
        """End a session. Returns False where it is not the one that publishes."""
        publisher = self._slots[stream].publisher
        if publisher is None or not secrets.compare_digest(publisher.id, session):
            return False
        if publisher.task is not None:
            publisher.task.cancel()
            await asyncio.wait([publisher.task])
        return True

    async def wait(self, stream: str) -> Publisher:
        """Return the stream's publisher, as soon as one is connected."""
        slot = self._slots[stream]
        while True:
            await slot.connected.wait()
            if slot.publisher is not None:
                return slot.publisher
