"""One HTTP resource as a file that FFmpeg reads and seeks in, whatever the server makes of byte ranges and compression.

A server may ignore a range and send the whole. Then what lies before the wanted byte is read and thrown away, within a
bound. What is compressed although nobody asked for it is unpacked, piece by piece, in bounded memory.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import httpx

from stream_sttm.errors import NotVideo, SourceError, SourceUnavailable

MAX_SKIPPED = 64 << 20  # bytes that are read and thrown away for one seek
NEAR = 256 << 10  # bytes ahead up to which reading on is cheaper than another request
_PIECE = 64 << 10  # bytes that are unpacked at a time
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)", re.ASCII)
_ZLIB = 32 + zlib.MAX_WBITS  # a gzip or zlib header, whichever is there


class Client(Protocol):
    """What a body needs of the HTTP client that opened it."""

    has_failed: bool

    def get(self, url: str, first: int = 0, last: int | None = None) -> tuple[httpx.Response, str]:
        """Return the response for a range of `url`, and the URL after redirects. Raises SourceError."""
        ...

    def check_time(self) -> None:
        """Raise SourceUnavailable where opening has taken too long."""
        ...

    def line(self, what: str) -> str:
        """Return a line that says what is wrong, and with which source."""
        ...

    def unavailable(self, error: Exception) -> SourceError:
        """Return an error of httpx as ours."""
        ...

    def failing(self) -> AbstractContextManager[None]:
        """Note that something failed."""
        ...


class Body:
    """Bytes `first` to `last` of a resource, positions counted from `first`."""

    def __init__(self, client: Client, url: str, first: int, last: int | None) -> None:
        self._client, self._first, self._last = client, first, last
        self._position, self._peeked = 0, b""
        self._response, self.url = client.get(url, first, last)
        headers = self.headers = self._response.headers
        self.content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        self._encoding = _encoding(headers)
        self._length = self._remaining(self._response)
        accepted = headers.get("accept-ranges", "").strip().lower()
        self._takes_ranges = accepted == "bytes" or self._response.status_code == 206
        self._may_take_ranges = accepted != "none"
        self._parts = self._started()
        self._is_elsewhere = False  # the position was set since the last read
        self._read_to = 0  # the position before that

    def find_out_ranges(self) -> None:
        """Ask for one byte where the server does not say whether it takes ranges."""
        if self._takes_ranges or not self._may_take_ranges or (self._length or 0) < 2:
            return
        try:
            response, _ = self._client.get(self.url, self._first + 1, self._first + 1)
        except SourceError:
            return
        response.close()
        self._takes_ranges = response.status_code == 206

    @property
    def is_small_mp4(self) -> bool:
        """Whether it is an MP4 file whose index may be at its end, and which fits into memory."""
        return self.peek()[4:8] == b"ftyp" and 0 < (self._length or 0) <= MAX_SKIPPED

    def peek(self) -> bytes:
        """Return the next bytes without consuming them. Returns none at the end."""
        if not self._peeked:
            self._peeked = self._more()
        return self._peeked

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, as many as are there. Returns none at the end or after a failure."""
        if self._client.has_failed:
            return b""
        with self._client.failing():
            if self._is_elsewhere:
                self._go()
            found = self.peek()
        given, self._peeked = found[:size], found[size:]
        self._position += len(given)
        return given

    def seekable(self) -> bool:
        """Return whether `seek` works."""
        return self._takes_ranges and self._length is not None and not self._encoding

    def seek(self, offset: int, whence: int = 0) -> int:
        """Set the position and return it. The request for it is sent with the next read."""
        if not self._is_elsewhere:
            self._read_to = self._position
        start = (0, self._position, self._length or 0)[whence]
        self._position = max(0, start + offset)
        self._is_elsewhere = self._position != self._read_to
        return self._position

    def tell(self) -> int:
        """Return the position of the next read."""
        return self._position

    def close(self) -> None:
        """End the request."""
        self._response.close()

    def _go(self) -> None:
        """Make the next byte that is read the one at the position."""
        ahead = self._position - self._read_to
        self._is_elsewhere = False
        if 0 < ahead <= NEAR and self._skip(ahead):
            return
        self.close()
        self._peeked, self._parts = b"", iter(())
        if self._position < (self._length or 0):
            wanted = self._first + self._position
            self._response, _ = self._client.get(self.url, wanted, self._last)
            self._parts = self._started()

    def _started(self) -> Iterator[bytes]:
        """Return the response's bytes from the position on, whichever range it holds."""
        begins = 0
        if self._response.status_code == 206:
            named = _RANGE.match(self._response.headers.get("content-range", ""))
            begins = int(named[1]) if named else self._first + self._position
        surplus = self._first + self._position - begins
        if surplus < 0 or surplus > MAX_SKIPPED:
            self.close()
            raise SourceUnavailable(self._client.line("the server takes no byte ranges"))
        parts = self._response.iter_raw()
        if self._encoding:
            parts = _unpacked(parts, self._encoding, self._client)
        left = None if self._length is None else self._length - self._position
        return self._checked(_cut(parts, surplus, left))

    def _checked(self, parts: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the parts that hold bytes, while there is time. Raises SourceError for errors of httpx."""
        try:
            for part in parts:
                self._client.check_time()
                if part:
                    yield part
        except httpx.HTTPError as error:
            raise self._client.unavailable(error) from error

    def _remaining(self, response: httpx.Response) -> int | None:
        """Return how many bytes there are from `first` on. None where that is not known."""
        text = response.headers.get("content-length", "")
        length = int(text) if text.isdecimal() and text.isascii() else None
        if self._encoding or length is None or response.status_code == 206:
            return None if self._encoding else length
        end = length if self._last is None else min(length, self._last + 1)
        return max(0, end - self._first)

    def _skip(self, count: int) -> bool:
        """Read `count` bytes and throw them away. Returns False where there are not so many."""
        while count:
            found = self.peek()
            if not found:
                return False
            used = min(count, len(found))
            self._peeked, count = found[used:], count - used
        return True

    def _more(self) -> bytes:
        self._client.check_time()
        return next(self._parts, b"")


def _cut(parts: Iterator[bytes], surplus: int, length: int | None) -> Iterator[bytes]:
    """Yield the bytes after the first `surplus`, and no more than `length`; empty pieces stand for those left out."""
    for part in parts:
        given = part[surplus:]
        surplus -= min(surplus, len(part))
        if length is not None:
            given = given[:length]
            length -= len(given)
        yield given
        if length == 0:
            return


def _encoding(headers: httpx.Headers) -> str:
    """Return the content codings that were applied, comma separated, without those that change nothing."""
    names = (name.strip().lower() for name in headers.get("content-encoding", "").split(","))
    return ", ".join(name for name in names if name not in ("", "identity", "none"))


def _unpacked(parts: Iterator[bytes], encoding: str, client: Client) -> Iterator[bytes]:
    """Yield what gzip or deflate has packed. Raises NotVideo for other codings and for damage."""
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise NotVideo(
            client.line(f"the server sends it with Content-Encoding {encoding[:40]!r}, unasked")
        )
    unpacker = None
    for part in parts:
        if unpacker is None and part:
            is_bare = encoding == "deflate" and part[0] & 0x0F != zlib.DEFLATED
            unpacker = zlib.decompressobj(-zlib.MAX_WBITS if is_bare else _ZLIB)
        packed = part
        while packed and unpacker is not None and not unpacker.eof:
            try:
                yield unpacker.decompress(packed, _PIECE)
            except zlib.error as error:
                raise NotVideo(client.line(f"its {encoding} data is damaged")) from error
            packed = unpacker.unconsumed_tail
