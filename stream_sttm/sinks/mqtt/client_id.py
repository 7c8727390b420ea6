"""The client id of a sink, the same over reconnects and restarts.

A broker keeps one connection per id. So one that comes back ends its half-open predecessor, whose last will is then
published before our `online`. Two services with one id would end each other for ever. That is noticed, and this one
goes on with an id of its own. Pure: the clock is passed in.
"""

from __future__ import annotations

import hashlib
from collections import deque
from uuid import uuid4

from stream_sttm.sinks.mqtt.url import Endpoint

_LOST = 3  # connections in a row that somebody else seems to have ended
_WITHIN = 60.0  # seconds
_NAME = "stream-sttm-{}"  # with 10 characters more, 22: any broker takes 23


class ClientId:
    """The id under which a sink connects."""

    def __init__(self, endpoint: Endpoint) -> None:
        own = hashlib.sha256(f"{endpoint.node}\n{endpoint.prefix}".encode())
        self.value = _NAME.format(own.hexdigest()[:10])
        self.is_shared = False  # whether somebody else seems to use it too
        self._lost: deque[float] = deque(maxlen=_LOST)

    def pushed_out(self, now: float) -> bool:
        """Note that a connection was ended as by a second client. Returns whether the id is given up for another."""
        self._lost.append(now)
        is_fight = len(self._lost) == _LOST and now - self._lost[0] < _WITHIN
        if self.is_shared or not is_fight:
            return False
        self.is_shared, self.value = True, _NAME.format(uuid4().hex[:10])
        return True
