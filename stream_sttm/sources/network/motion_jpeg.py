"""Motion JPEG over HTTP as cameras send it, rewritten as FFmpeg's mpjpeg wants it.

Browsers find the pictures whatever is around them: a missing first boundary, boundary lines without dashes, parts
without a type or with a wrong length. So do we: a picture is found by its own markers, from SOI to EOI (ITU-T T.81,
annex B), and what lies between pictures is thrown away.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Protocol

from stream_sttm.errors import NotVideo

MAX_PICTURE = 64 << 20  # bytes
MAX_BETWEEN = 1 << 20  # bytes without the start of a picture
CHUNK = 64 << 10
_SOI = b"\xff\xd8\xff"  # a start of image, and the beginning of the next marker
_MARKER = re.compile(
    rb"\xff[\x02-\xcf\xd8-\xfe]"
)  # not stuffing, TEM and RST, which have no length
_UNNAMED = ("", "application/octet-stream", "text/plain", "image/jpeg", "image/jpg")


class Readable(Protocol):
    """A body of an HTTP response."""

    content_type: str

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes. Returns none at the end."""
        ...

    def peek(self) -> bytes:
        """Return the next bytes without consuming them."""
        ...


class Named(Protocol):
    """Who knows what the source is called."""

    def line(self, what: str) -> str:
        """Return a line that says what is wrong, and with which source."""
        ...


def is_motion_jpeg(body: Readable) -> bool:
    """Return whether a response is motion JPEG, by its type, or by its first part's headers."""
    if body.content_type.startswith("multipart/"):
        return True
    if body.content_type not in _UNNAMED:
        return False
    start = body.peek()[:512].lstrip().lower()
    return start.startswith((b"--", b"content-")) and b"image/jp" in start


class MotionJpeg:
    """The pictures of a response as a file of well-formed parts, for FFmpeg."""

    def __init__(self, body: Readable, named: Named) -> None:
        self._parts = _parts(_Pictures(body, named))
        self._rest = b""

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes. Returns none at the end. Raises NotVideo where no pictures come."""
        if not self._rest:
            self._rest = next(self._parts, b"")
        given, self._rest = self._rest[:size], self._rest[size:]
        return given

    def seekable(self) -> bool:
        """Return False: a camera's pictures come once."""
        return False


def _parts(pictures: _Pictures) -> Iterator[bytes]:
    while (picture := pictures.next()) is not None:
        head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
        yield head.encode() + picture + b"\r\n"


class _Pictures:
    """Cuts JPEG pictures out of a body."""

    def __init__(self, body: Readable, named: Named) -> None:
        self._body, self._named = body, named
        self._held = bytearray()

    def next(self) -> bytes | None:
        """Return the next whole picture, None at the end of the body. Raises NotVideo where there is none in reach."""
        if not self._find_start():
            return None
        at: int | None = 2
        while at is not None:
            marker = self._marker(at)
            if marker is None:
                return None
            code, at = marker
            if code == 0xD8:  # the one before was cut off: begin again with this one
                del self._held[: at - 2]
                at = 2
            elif code == 0xD9:
                picture = bytes(self._held[:at])
                del self._held[:at]
                return picture
            else:
                at = self._after_segment(at)
        return None

    def _find_start(self) -> bool:
        """Throw away what lies before the next picture. Returns False at the end of the body."""
        skipped = 0
        while (at := self._held.find(_SOI)) < 0:
            skipped += max(0, len(self._held) - 2)
            del self._held[:-2]  # the start may be divided
            if skipped > MAX_BETWEEN:
                raise NotVideo(self._named.line("its parts hold no JPEG pictures"))
            if not self._fill(len(self._held) + 1):
                return False
        del self._held[:at]
        return True

    def _marker(self, at: int) -> tuple[int, int] | None:
        """Return the next marker's code from `at` on, and where it ends. None at the end of the body."""
        while (found := _MARKER.search(self._held, at)) is None:
            at = max(at, len(self._held) - 1)  # a marker may be divided
            if not self._fill(len(self._held) + 1):
                return None
        return found[0][1], found.end()

    def _after_segment(self, at: int) -> int | None:
        """Return where the marker segment ends whose length is at `at`. None at the end of the body."""
        if not self._fill(at + 2):
            return None
        end = at + int.from_bytes(self._held[at : at + 2])
        return end if self._fill(end) else None

    def _fill(self, size: int) -> bool:
        """Read until `size` bytes are held. Returns False where the body ends before."""
        if size > MAX_PICTURE:
            raise NotVideo(self._named.line(f"a picture has more than {MAX_PICTURE >> 20} MiB"))
        while len(self._held) < size:
            more = self._body.read(CHUNK)
            if not more:
                return False
            self._held += more
        return True
