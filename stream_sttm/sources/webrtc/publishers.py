"""Who publishes which stream: at most one peer for each, at most so many offers in so many seconds.

Takes the offers that came over HTTP and keeps the peers; what a peer is stands in whip.py, and is imported with the
first offer, for the extra `webrtc` need not be there. Knows nothing of HTTP: api/whip.py speaks it.
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
    from stream_sttm.sources.webrtc.whip import Publisher

OFFERS, PER = 20, 10.0  # offers for one stream that are looked at, in so many seconds

logger = logging.getLogger(__name__)


@dataclass
class _Door:
    """The place of one stream's publisher, and when offers came."""

    publisher: Publisher | None = None
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    offers: deque[float] = field(default_factory=lambda: deque(maxlen=OFFERS))


class Publishers:
    """Who publishes which of `streams`; entered, it takes offers, left, it hangs up on all."""

    def __init__(self, streams: Iterable[str] = ()) -> None:
        self._doors: dict[str, _Door] = {}
        self._stack = AsyncExitStack()
        self._group: asyncio.TaskGroup
        self.follow(streams)

    async def __aenter__(self) -> Self:
        self._group = await self._stack.enter_async_context(asyncio.TaskGroup())
        return self

    async def __aexit__(self, *error: object) -> None:
        for door in self._doors.values():
            if door.publisher is not None and door.publisher.task is not None:
                door.publisher.task.cancel()
        await self._stack.aclose()

    def follow(self, streams: Iterable[str]) -> None:
        """Take publishers of these streams alone from now on; who publishes another is left to its source to end."""
        self._streams = frozenset(streams)
        for stream in self._streams:
            self._doors.setdefault(stream, _Door())

    def takes(self, stream: str) -> bool:
        """Whether the stream is one that is published to us."""
        return stream in self._streams

    async def publish(self, stream: str, offer: str) -> tuple[str, str]:
        """Take an offer; the session's id and our SDP answer. Raises PublishError."""
        door, now = self._doors[stream], time.monotonic()
        if len(door.offers) == OFFERS and now - door.offers[0] < PER:
            raise TooManyOffers(f"more than {OFFERS} offers in {PER:g} s for stream {stream!r}")
        door.offers.append(now)
        if door.publisher is not None:
            raise AlreadyPublished(f"stream {stream!r} has a publisher; end its session first")
        try:
            from stream_sttm.sources.webrtc.whip import Publisher, usable
        except ModuleNotFoundError as error:
            raise PublishError(
                f"publishing needs the package {error.name!r}: pip install 'stream-sttm[webrtc]'"
            ) from error
        offer = usable(offer)
        publisher = door.publisher = Publisher(stream)
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        serving = self._serve(door, publisher, offer, answer)
        publisher.task = self._group.create_task(serving, name=f"whip[{stream}]")
        return publisher.id, await asyncio.shield(answer)

    async def _serve(
        self, door: _Door, publisher: Publisher, offer: str, answer: asyncio.Future[str]
    ) -> None:
        """A publisher's life, from its offer to its end."""
        describing = asyncio.create_task(publisher.answer(offer), name="answer")
        try:
            # cancelled half-way, or closed meanwhile, it would lose its sockets
            answer.set_result(await asyncio.shield(describing))
            await publisher.run(door.connected)
        except NotAnOffer as error:
            answer.set_exception(error)
        except Exception as error:
            logger.exception("whip: unexpected")
            if not answer.done():
                answer.set_exception(PublishError(f"unexpected {type(error).__name__}"))
        finally:
            await asyncio.wait([describing])
            door.connected.clear()
            door.publisher = None
            answer.cancel()
            await publisher.close()

    async def end(self, stream: str, session: str) -> bool:
        """End a session, if it is the one that publishes."""
        publisher = self._doors[stream].publisher
        if publisher is None or not secrets.compare_digest(publisher.id, session):
            return False
        if publisher.task is not None:
            publisher.task.cancel()
            await asyncio.wait([publisher.task])
        return True

    async def wait(self, stream: str) -> Publisher:
        """The stream's publisher, as soon as one is connected."""
        door = self._doors[stream]
        while True:
            await door.connected.wait()
            if door.publisher is not None:
                return door.publisher
