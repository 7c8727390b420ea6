"""HTTP for FFmpeg: every byte of an http(s):// source, playlists and segments included, is read here.

So each address, each redirect and each URL in a playlist is checked before a connection. Certificates are verified as
everywhere else. Credentials go to the camera alone. Every read is bounded. One client serves one source, in the thread
that decodes it. Errors of httpx leave this module as ours.
"""

from __future__ import annotations

import contextlib
import io
import ssl
import time
from collections.abc import Generator, Iterator, Mapping
from urllib.parse import unquote, urlsplit, urlunsplit

import av
import httpx
from av.container import InputContainer

from stream_sttm import urls
from stream_sttm.errors import NotVideo, SourceDenied, SourceError, SourceUnavailable
from stream_sttm.sources.network import tls
from stream_sttm.sources.network.access import Access

MAX_REDIRECTS = 5
PLAYLIST_SILENCE = 30.0  # seconds that a playlist may take to name its next segment
_PORTS = {"http": 80, "https": 443}
_FORMATS = {  # by Content-Type, where FFmpeg's guess from the bytes alone is worse
    "multipart/x-mixed-replace": "mpjpeg",
    "application/vnd.apple.mpegurl": "hls",
    "application/x-mpegurl": "hls",
    "audio/mpegurl": "hls",
}
_PLAYLIST = b"#EXTM3U"
_CLOSED = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
_LINE = 1024  # bytes; a boundary has 70 at most (RFC 2046)
NOTHING_ELSE = {"protocol_whitelist": "data"}  # FFmpeg itself may connect to nothing
_HLS = {"http_persistent": "0", "http_multiple": "0"}


class Login(httpx.Auth):
    """Basic or Digest, whichever the camera asks for."""

    def __init__(self, user: str, password: str) -> None:
        self._user, self._password = user, password

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Ask without credentials first, then as the response demands."""
        answer = yield request
        demanded = answer.headers.get("www-authenticate", "").lower()
        if answer.status_code != 401:
            return
        if "digest" in demanded:
            flow = httpx.DigestAuth(self._user, self._password).auth_flow(request)
            next(flow)
            with contextlib.suppress(StopIteration):
                while True:
                    answer = yield flow.send(answer)
        elif "basic" in demanded:
            yield next(httpx.BasicAuth(self._user, self._password).auth_flow(request))


class HttpClient:
    """Opens an http(s):// URL for FFmpeg. All of it blocks."""

    def __init__(
        self, url: str, access: Access, *, trust: ssl.SSLContext, timeout: tuple[float, float]
    ) -> None:
        self._url, self._shown, self._access = url, urls.mask(url), access
        self._open_for, self._silence = timeout
        self._until: float | None = None  # monotonic, while it is being opened
        parts = urls.split(url)
        self._origin = (parts.scheme, parts.hostname, parts.port)
        self._login = None
        if parts.username is not None:
            self._login = Login(unquote(parts.username), unquote(parts.password or ""))
        self._first: Body | None = None
        self.has_failed = False
        limits = httpx.Timeout(self._silence, connect=self._open_for)
        self._client = httpx.Client(
            verify=trust, timeout=limits, trust_env=False,
            headers={"User-Agent": "stream-sttm", "Accept": "*/*", "Accept-Encoding": "identity"},
        )  # fmt: skip

    @contextlib.contextmanager
    def open(self, options: Mapping[str, str]) -> Iterator[InputContainer]:
        """Open the container while the context is entered. Raises FFmpeg's errors and SourceError."""
        with self._client, self._container(options) as container:
            self._until = None
            yield container

    def _container(self, options: Mapping[str, str]) -> InputContainer:
        self._until = time.monotonic() + 2 * self._open_for
        netloc = urls.split(self._url).netloc.rpartition("@")[2]
        body = Body(self, urlunsplit(urls.split(self._url)._replace(netloc=netloc)), 0, None)
        form = _FORMATS.get(body.content_type)
        if form is None and body.peek().startswith(_PLAYLIST):
            form = "hls"
        if form == "mpjpeg":
            body.start_with_line()
        if form == "hls":
            self._first = body
            return av.open(
                body.url, mode="r", format=form, options={**options, **_HLS}, io_open=self._next,
                timeout=(2 * self._open_for, PLAYLIST_SILENCE),
            )  # fmt: skip
        return av.open(body, mode="r", format=form, options={**options, **NOTHING_ELSE})

    def check_time(self) -> None:
        """Raise SourceUnavailable where opening has taken too long."""
        if self._until is not None and time.monotonic() > self._until:
            raise SourceUnavailable(self.line("answers, but sends no video in time"))

    def get(self, url: str, first: int = 0, last: int | None = None) -> tuple[httpx.Response, str]:
        """Return the response for `url`, its body not yet read, and the URL after redirects. Raises SourceError."""
        for _ in range(MAX_REDIRECTS):
            self.check_time()
            answer = self._send(url, first, last)
            target = answer.headers.get("location")
            if not answer.has_redirect_location or target is None:
                return self._good(answer), url
            answer.close()
            url = str(httpx.URL(url).join(target))
            if urlsplit(url).scheme not in _PORTS:
                raise NotVideo(self.line("redirects to something that is not HTTP"))
        raise SourceUnavailable(self.line(f"redirects more than {MAX_REDIRECTS} times"))

    def line(self, what: str) -> str:
        """Return a line that says what is wrong, and with which source."""
        return f"{self._shown}: {urls.scrub(what, self._url)}"

    def unavailable(self, error: Exception) -> SourceError:
        """Return an error of httpx as ours."""
        if isinstance(error, httpx.TimeoutException):
            return SourceUnavailable(self.line(f"no data for {self._silence:g} s"))
        return SourceUnavailable(
            self.line(tls.explained(error) or str(error) or type(error).__name__)
        )

    def _send(self, url: str, first: int, last: int | None) -> httpx.Response:
        parts = urlsplit(url)
        port = parts.port or _PORTS[parts.scheme]
        target, extensions = httpx.URL(url), {}
        headers = {"Host": target.netloc.decode("ascii")}
        if first or last is not None:
            headers["Range"] = f"bytes={first}-{'' if last is None else last}"
        if self._access.limits_hosts:  # to the very address that was checked
            address, *_ = self._access.resolve_now(url, port)
            extensions = {"sni_hostname": str(parts.hostname)}
            target = target.copy_with(host=address)
        is_same = (parts.scheme, parts.hostname, parts.port) == self._origin
        login = self._login if is_same else None
        request = self._client.build_request("GET", target, headers=headers, extensions=extensions)
        try:
            with contextlib.suppress(*_CLOSED):
                return self._client.send(request, stream=True, auth=login)
            # a server may close a kept connection just as it is used again: once more, on a new one
            return self._client.send(request, stream=True, auth=login)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self.unavailable(error) from error

    def _good(self, answer: httpx.Response) -> httpx.Response:
        status = answer.status_code
        if 200 <= status < 300:
            return answer
        answer.close()
        if status in (401, 403):
            raise SourceDenied(self.line(f"access denied (HTTP {status}): check user and password"))
        if status == 404:
            raise SourceUnavailable(self.line("no such stream there (404): check the path"))
        raise SourceUnavailable(self.line(f"HTTP {status}"))

    def _next(self, url: str, _flags: int, options: Mapping[str, str]) -> Body | io.BytesIO:
        """Open for FFmpeg what a playlist names. Returns the playlist itself first, nothing after a failure.

        FFmpeg goes on whatever happens here. PyAV raises the error when FFmpeg is done.
        """
        if self.has_failed:
            return io.BytesIO()
        with self.failing():
            return self._named(url, options)

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """Note that something failed."""
        try:
            yield
        except SourceError:
            self.has_failed = True
            raise

    def _named(self, url: str, options: Mapping[str, str]) -> Body:
        if self._first is not None and self._first.url == url:
            body, self._first = self._first, None
            return body
        scheme = urlsplit(url).scheme
        if scheme.startswith("crypto"):
            raise NotVideo(self.line("the playlist's segments are encrypted"))
        if scheme not in _PORTS:
            raise NotVideo(self.line("the playlist names something that is not HTTP"))
        first, end = int(options.get("offset", 0)), int(options.get("end_offset", 0))
        return Body(self, url, first, end - 1 if end else None)


class Body:
    """One resource as a file that FFmpeg reads. It can be sought in where the server takes ranges."""

    def __init__(self, web: HttpClient, url: str, first: int, last: int | None) -> None:
        self._web, self._first, self._last = web, first, last
        self._position, self._peeked = 0, b""
        self._answer, self.url = web.get(url, first, last)
        self._parts = self._answer.iter_raw()
        headers = self._answer.headers
        self.content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        length = headers.get("content-length", "")
        self._length = int(length) if length.isdecimal() else None
        self._can_seek = headers.get("accept-ranges", "").lower() == "bytes"
        self._is_elsewhere = False  # sought since the last read

    def peek(self) -> bytes:
        """Return the next bytes without consuming them. Returns none at the end."""
        if not self._peeked:
            self._peeked = self._more()
        return self._peeked

    def start_with_line(self) -> None:
        """Make the next read give a whole line at least, without blank lines before it.

        FFmpeg's mpjpeg returns to its first line, and can only while one read holds all of it.
        """
        line = self._peeked
        while b"\n" not in (line := line.lstrip(b"\r\n")) and len(line) < _LINE:
            more = self._more()
            if not more:
                break
            line += more
        self._peeked = line

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, as many as are there. Returns none at the end or after a failure."""
        if self._web.has_failed:
            return b""
        with self._web.failing():
            if self._is_elsewhere:
                self._go()
            found = self.peek()
        given, self._peeked = found[:size], found[size:]
        self._position += len(given)
        return given

    def seekable(self) -> bool:
        """Return whether `seek` works."""
        return self._can_seek and self._length is not None

    def seek(self, offset: int, whence: int = 0) -> int:
        """Set the position. The request for it is sent with the next read."""
        start = (0, self._position, self._length or 0)[whence]
        wanted = max(0, start + offset)
        self._is_elsewhere |= wanted != self._position
        self._position = wanted
        return wanted

    def tell(self) -> int:
        """Return the position of the next read."""
        return self._position

    def close(self) -> None:
        """End the request."""
        self._answer.close()

    def _go(self) -> None:
        self.close()
        self._is_elsewhere, self._peeked, self._parts = False, b"", iter(())
        if self._position < (self._length or 0):
            self._answer, _ = self._web.get(self.url, self._first + self._position, self._last)
            if self._answer.status_code != 206:
                raise SourceUnavailable(self._web.line("the server takes no ranges after all"))
            self._parts = self._answer.iter_raw()

    def _more(self) -> bytes:
        self._web.check_time()
        try:
            return next(self._parts, b"")
        except httpx.HTTPError as error:
            raise self._web.unavailable(error) from error
