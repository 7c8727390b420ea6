"""Cuts a motion JPEG body into its pictures by the JPEG format itself, whatever the parts around them look like.

Cameras send parts without a first boundary, without a type, with `image/jpg`, with a wrong length, or with boundary
lines that miss their dashes. Browsers show all of these. So the parts' headers are not read at all: a picture begins
with its SOI marker and ends with its EOI marker (ISO/IEC 10918-1, annex B). Thumbnails lie inside of segments, whose
lengths are skipped. Pure: bytes in, parts that FFmpeg's mpjpeg demuxer reads out.
"""

from __future__ import annotations

from collections.abc import Iterator

MAX_PICTURE = 32 << 20  # bytes; what is longer is no picture
_SOI, _EOI, _SOS = b"\xff\xd8", 0xD9, 0xDA
_BARE = {0x01, *range(0xD0, 0xD8)}  # markers without a length: TEM, and restarts
_HEAD = b"--part\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"


class JpegParts:
    """Takes the chunks of a body and yields each picture as one part of a well-formed body."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._scanned = 0  # bytes of the picture that have been looked at
        self._is_entropy = False  # whether these end within entropy-coded data

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Take a chunk; yields the parts that end in it."""
        self._held += chunk
        while (end := self._end()) is not None:
            picture = bytes(self._held[:end])
            del self._held[:end]
            self._restart()
            yield _HEAD % len(picture) + picture + b"\r\n"

    def _restart(self) -> None:
        self._scanned, self._is_entropy = 0, False

    def _end(self) -> int | None:
        """Return where the first picture ends, None where that is not there yet. Drops what is before it."""
        while True:
            if self._scanned == 0 and not self._begin():
                return None
            end = self._follow()
            if end == 0:  # damaged: the next picture begins here
                self._restart()
                continue
            if end is None and len(self._held) > MAX_PICTURE:
                del self._held[: len(_SOI)]
                self._restart()
                continue
            return end

    def _begin(self) -> bool:
        """Drop all before the next SOI. Returns whether there is one."""
        start = self._held.find(_SOI)
        if start < 0:
            del self._held[: max(0, len(self._held) - 1)]
            return False
        del self._held[:start]
        self._scanned = len(_SOI)
        return True

    def _follow(self) -> int | None:
        """Walk the markers on. Returns the picture's end, 0 where another cuts it off, None where more is needed."""
        held = self._held
        while True:
            at = held.find(b"\xff", self._scanned) if self._is_entropy else self._scanned
            if at < 0 or at + 2 > len(held):
                self._scanned = len(held) if at < 0 else at
                return None
            marker = held[at + 1]
            if self._is_entropy and (marker == 0 or marker in _BARE or marker == 0xFF):
                self._scanned = at + (1 if marker == 0xFF else 2)
                continue
            if held[at] != 0xFF or held[at : at + 2] == _SOI:
                return self._cut(at)
            if marker == _EOI:
                return at + 2
            if marker in _BARE or marker == 0xFF:
                self._scanned = at + (1 if marker == 0xFF else 2)
                continue
            if at + 4 > len(held):
                self._scanned = at
                return None
            after = at + 2 + int.from_bytes(held[at + 2 : at + 4])
            if after > len(held):
                self._scanned = at
                return None
            self._scanned, self._is_entropy = after, marker == _SOS

    def _cut(self, at: int) -> int:
        """Drop a picture that is damaged at `at`."""
        del self._held[: max(at, len(_SOI))]
        return 0
