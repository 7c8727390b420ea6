"""Methods of a resource as RFC 9110 has them: HEAD wherever GET is, and all of them in `Allow`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_METHODS = ("DELETE", "GET", "OPTIONS", "PATCH", "POST", "PUT")


def allowed(routes: Iterable[BaseRoute], scope: Scope) -> str:
    """Return the methods that the resource of a request takes, as `Allow` lists them."""
    taken = {
        method
        for route in routes
        for method in _METHODS
        if route.matches({**scope, "method": method})[0] is Match.FULL
    }
    return ", ".join(sorted(taken | ({"HEAD"} if "GET" in taken else set())))


class Heads:
    """An ASGI application that answers HEAD as it would GET, without the body. An endless answer is ended."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        has_begun = asyncio.Event()

        async def begin(message: Message) -> None:
            if message["type"] == "http.response.start" and not has_begun.is_set():
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                has_begun.set()

        working = asyncio.ensure_future(self._app({**scope, "method": "GET"}, receive, begin))
        waiting = asyncio.create_task(has_begun.wait())
        try:
            await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
            if not has_begun.is_set():
                await working  # it raises what went wrong
        finally:
            for task in (working, waiting):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task
