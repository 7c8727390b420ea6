"""HTTP for FFmpeg: every byte of an http(s):// source, playlists and segments included, is read here.

So each address, each redirect and each URL in a playlist is checked before a connection. Certificates are verified as
everywhere else. Credentials go to the camera alone. Every read is bounded. One client serves one source, in the thread
that decodes it. Errors of httpx leave this module as ours.
"""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import time
from collections.abc import Generator, Iterator, Mapping
from urllib.parse import unquote, urlsplit, urlunsplit

import av
import httpx
from av.container import InputContainer

from stream_sttm import urls
from stream_sttm.errors import NotVideo, SourceDenied, SourceError, SourceUnavailable
from stream_sttm.sources.network import hls, tls
from stream_sttm.sources.network.access import Access
from stream_sttm.sources.network.challenges import HTTPX, obstacle
from stream_sttm.sources.network.http_body import Body
from stream_sttm.sources.network.motion_jpeg import MotionJpeg, is_motion_jpeg

MAX_REDIRECTS = 5
PLAYLIST_SILENCE = 30.0  # seconds that a playlist may take to name its next segment
_PORTS = {"http": 80, "https": 443}
_PLAYLISTS = ("application/vnd.apple.mpegurl", "application/x-mpegurl", "audio/mpegurl")
MAX_PLAYLIST = 16 << 20  # bytes
_MARGIN = 1.0  # seconds before the end of opening in which to say why it has failed
_PLAYLIST = b"#EXTM3U"
_CLOSED = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
_PIECE = 64 << 10
NOTHING_ELSE = {"protocol_whitelist": "data"}  # FFmpeg itself may connect to nothing
_HLS = {"http_persistent": "0", "http_multiple": "0"}


class Login(httpx.Auth):
    """Basic or Digest, whichever the camera asks for."""

    def __init__(self, user: str, password: str) -> None:
        self._user, self._password = user, password

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Ask without credentials first, then as the response demands.

        The second request goes over a new connection: a server may close the first one just as it is used again.
        """
        request.headers["Connection"] = "close"
        answer = yield request
        request.headers["Connection"] = "keep-alive"
        challenges = answer.headers.get_list("www-authenticate")
        if answer.status_code != 401 or obstacle(challenges, HTTPX):
            return
        demanded = ", ".join(challenges).lower()
        if "digest" in demanded:
            flow = httpx.DigestAuth(self._user, self._password).auth_flow(request)
            next(flow)
            with contextlib.suppress(StopIteration):
                while True:
                    answer = yield flow.send(answer)
        elif "basic" in demanded:
            yield next(httpx.BasicAuth(self._user, self._password).auth_flow(request))


def is_playlist(body: Body) -> bool:
    """Return whether a response is an HLS playlist, by its type or its first line."""
    return body.content_type in _PLAYLISTS or body.peek().startswith(_PLAYLIST)


class HttpClient:
    """Opens an http(s):// URL for FFmpeg. All of it blocks."""

    def __init__(
        self,
        url: str,
        access: Access,
        *,
        trust: ssl.SSLContext,
        timeout: tuple[float, float],
        progress: hls.Progress | None = None,
    ) -> None:
        self._progress = progress or hls.Progress()
        self._begun: set[str] = set()  # live playlists of which a copy was read
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
        if is_motion_jpeg(body):
            pictures = MotionJpeg(body, self)
            return av.open(pictures, mode="r", format="mpjpeg", options={**options, **NOTHING_ELSE})
        if is_playlist(body):
            self._first = body
            return av.open(
                body.url, mode="r", format="hls", options={**options, **_HLS}, io_open=self._next,
                timeout=(2 * self._open_for, PLAYLIST_SILENCE),
            )  # fmt: skip
        body.find_out_ranges()
        file: Body | io.BytesIO = body
        if body.is_small_mp4 and not body.seekable():
            file = io.BytesIO(b"".join(iter(lambda: body.read(_PIECE), b"")))
        return av.open(file, mode="r", options={**options, **NOTHING_ELSE})

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
        except httpx.RemoteProtocolError as error:
            raise self._no_answer(url, error) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self.unavailable(error) from error

    def _no_answer(self, url: str, error: httpx.RemoteProtocolError) -> SourceError:
        """Return what a connection was that brought no HTTP response."""
        if "status line" in str(error) or ("disconnected" in str(error) and self._is_foreign(url)):
            return NotVideo(self.line("something answers there, but it does not speak HTTP"))
        if "disconnected" in str(error):
            return SourceUnavailable(self.line("the connection was closed without an answer"))
        return self.unavailable(error)

    def _is_foreign(self, url: str) -> bool:
        """Ask once more without an HTTP library. Returns whether what comes is no HTTP."""
        parts = urlsplit(url)
        if parts.scheme != "http":
            return False
        port = parts.port or _PORTS["http"]
        address, *_ = self._access.resolve_now(url, port)
        with (
            contextlib.suppress(OSError),
            socket.create_connection((address, port), self._open_for) as connection,
        ):
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {parts.hostname}\r\n\r\n".encode())
            start = connection.recv(256)
            return bool(start) and not b"HTTP/".startswith(start[:5])
        return False

    def _good(self, answer: httpx.Response) -> httpx.Response:
        status = answer.status_code
        if 200 <= status < 300:
            return answer
        answer.close()
        demanded = answer.headers.get_list("www-authenticate")
        if status == 401 and self._login is not None and (why := obstacle(demanded, HTTPX)):
            raise SourceDenied(self.line(f"access denied: {why}"))
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

    def _named(self, url: str, options: Mapping[str, str]) -> Body | io.BytesIO:
        if self._first is not None and self._first.url == url:
            body, self._first = self._first, None
            return self._playlist(body, url)
        scheme = urlsplit(url).scheme
        if scheme.startswith("crypto"):
            raise NotVideo(self.line("the playlist's segments are encrypted"))
        if scheme not in _PORTS:
            raise NotVideo(self.line("the playlist names something that is not HTTP"))
        first, end = int(options.get("offset", 0)), int(options.get("end_offset", 0))
        is_segment = self._progress.open(url)
        body = Body(self, url, first, end - 1 if end else None)
        if is_segment or not is_playlist(body):
            return body
        return self._playlist(body, url)

    def _playlist(self, body: Body, url: str) -> io.BytesIO:
        """Return a copy of a playlist: of a live one, what is new at first, and all of it from then on."""
        text = self._text(body)
        if hls.is_live(text):
            if url not in self._begun:
                text = self._news(text, body)
            self._begun.add(url)
            self._progress.read(text, body.url)
        return io.BytesIO(text.encode("utf-8", "surrogateescape"))

    def _news(self, text: str, body: Body) -> str:
        """Wait until a live playlist names a segment that was not given out before. Raises SourceUnavailable."""
        until = (self._until or time.monotonic() + 2 * self._open_for) - _MARGIN
        if hls.is_dead(text, body.headers):
            self._progress.pass_over(text, body.url)
        while (rest := self._progress.remaining(text, body.url)) is None:
            pause = min(2.0, hls.target(text) / 2)
            if time.monotonic() + pause > until:
                why = "its playlist names no new segment: its encoder has stopped"
                raise SourceUnavailable(self.line(why))
            time.sleep(pause)
            text = self._text(Body(self, body.url, 0, None))
        return rest

    def _text(self, body: Body) -> str:
        """Return a whole playlist. Raises NotVideo where it is too large for one."""
        parts: list[bytes] = []
        size = 0
        while part := body.read(_PIECE):
            parts.append(part)
            size += len(part)
            if size > MAX_PLAYLIST:
                raise NotVideo(self.line(f"a playlist has more than {MAX_PLAYLIST >> 20} MiB"))
        body.close()
        return b"".join(parts).decode("utf-8", "surrogateescape")
