"""Which segments of a live HLS playlist are new, over all connections to it.

A player begins a live playlist three segments before its end. After a short break that shows segments twice, and of
an encoder that died it shows the last ones again and again. So the segments that were given out are remembered, by
number and path, and left out of the first copy of a playlist that the next connection reads.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import unquote, urljoin, urlsplit

MOST_REMEMBERED = 64  # segments
STEP_BACK = (
    3  # segments that an older copy of a playlist may lack; beyond that its encoder was restarted
)
DEAD_AFTER = (
    10  # target durations without a change after which a live playlist is not written any more
)
LEAST_DEAD = 60.0  # seconds, the least for that
_NUMBER = re.compile(r"#EXT-X-MEDIA-SEQUENCE:\s*(\d{1,18})")
_TARGET = re.compile(r"#EXT-X-TARGETDURATION:\s*(\d{1,6})")
_OF_ONE_SEGMENT = (
    "#EXTINF", "#EXT-X-BYTERANGE", "#EXT-X-PROGRAM-DATE-TIME", "#EXT-X-PART:", "#EXT-X-GAP", "#EXT-X-BITRATE",
)  # fmt: skip


class Segment(NamedTuple):
    """A segment by its number in the stream and the path of its URL; signatures in a query may change."""

    number: int
    path: str


class Progress:
    """The segments that were given out, the newest last. `noted` is called with them when there is another."""

    def __init__(
        self,
        segments: Iterable[Sequence[int | str]] = (),
        noted: Callable[[list[Segment]], None] = lambda _: None,
    ) -> None:
        self._noted = noted
        self.segments = [Segment(int(number), str(path)) for number, path in segments]
        self._listed: list[Segment] = []  # in the newest copy of a playlist
        self._given: set[Segment] = set()  # on this connection

    def read(self, text: str, url: str) -> None:
        """Note a copy of a media playlist."""
        self._listed = listed(text, url)

    def open(self, url: str) -> bool:
        """Note that a segment is given out. Returns whether `url` is one."""
        path = _path(url)
        found = [segment for segment in self._listed if segment.path == path]
        fresh = [segment for segment in found if segment not in self._given]
        for segment in (fresh or found)[:1]:
            self._given.add(segment)
            self.segments = [*self.segments, segment][-MOST_REMEMBERED:]
            self._noted(self.segments)
        return bool(found)

    def pass_over(self, text: str, url: str) -> None:
        """Take all segments of a playlist for given out."""
        self.segments = listed(text, url)[-MOST_REMEMBERED:]

    def remaining(self, text: str, url: str) -> str | None:
        """Return a live playlist without the segments that were given out before. None where no other is left."""
        found = listed(text, url)
        shown = set(self.segments)
        newest = max((segment.number for segment in self.segments), default=-1)
        if found and found[-1].number < newest - STEP_BACK:
            self.segments, shown = [], set()
        old = max((index + 1 for index, each in enumerate(found) if each in shown), default=0)
        if found and found[-1].number < newest and all(each in shown for each in found):
            old = len(found)
        if not old:
            return text
        return None if old == len(found) else _without(text, old)


def is_live(text: str) -> bool:
    """Return whether a playlist names segments, and more are to come."""
    return "#EXTINF" in text and "#EXT-X-ENDLIST" not in text


def is_dead(text: str, headers: Mapping[str, str]) -> bool:
    """Return whether a live playlist was last written too long ago, by its HTTP headers. False where they don't say."""
    try:
        now, then = (parsedate_to_datetime(headers[name]) for name in ("date", "last-modified"))
        seconds = (now - then).total_seconds() + float(headers.get("age", 0))
    except (KeyError, TypeError, ValueError):
        return False
    return seconds > max(LEAST_DEAD, DEAD_AFTER * target(text))


def target(text: str) -> float:
    """Return a playlist's target duration in seconds."""
    found = _TARGET.search(text)
    return float(found[1]) if found else 2.0


def listed(text: str, url: str) -> list[Segment]:
    """Return the segments of a media playlist whose URL is `url`."""
    number = int(found[1]) if (found := _NUMBER.search(text)) else 0
    lines = (line.strip() for line in text.splitlines())
    names = [line for line in lines if line and not line.startswith("#")]
    return [Segment(number + at, _path(urljoin(url, name))) for at, name in enumerate(names)]


def _path(url: str) -> str:
    return posixpath.normpath(unquote(urlsplit(url).path))[-200:]


def _without(text: str, count: int) -> str:
    """Return a playlist without its first `count` segments; what holds for later ones too is kept."""
    kept, left = [], count
    for line in text.splitlines():
        bare = line.strip()
        if left and bare and not bare.startswith("#"):
            left -= 1
        elif not left or not (bare.startswith(_OF_ONE_SEGMENT) or bare == "#EXT-X-DISCONTINUITY"):
            kept.append(line)
    number = int(found[1]) if (found := _NUMBER.search(text)) else 0
    fewer = [line for line in kept if not _NUMBER.match(line.strip())]
    fewer.insert(1, f"#EXT-X-MEDIA-SEQUENCE:{number + count}")
    return "\n".join([*fewer, ""])
