"""The HTTP side of WHEP: one POST with our SDP offer, redirects included, and a DELETE at the end.

Credentials go to the host that the URL names and to no other. Each host is resolved and checked before it is asked.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qsl, unquote, urlencode, urlunsplit

import httpx

from stream_sttm import urls
from stream_sttm.errors import ConfigError, NotVideo, SourceDenied, SourceUnavailable
from stream_sttm.sources.network import tls
from stream_sttm.sources.network.access import Access
from stream_sttm.sources.webrtc.codecs import receivable

SDP = "application/sdp"
SIGNALLING_TIMEOUT = 8.0  # seconds for an offer and its answer
GOODBYE_TIMEOUT = 1.0  # seconds for the DELETE at the end, which is a courtesy
MAX_SDP = 256 * 1024  # bytes of an answer
MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 307, 308)  # after which an offer is posted again; RFC 9725 names 307
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Endpoint:
    """An HTTP URL without secrets, and what a request to it carries; `address` takes the host's place if given."""

    url: httpx.URL
    credentials: httpx.Headers = field(default_factory=httpx.Headers)
    auth: httpx.Auth | None = None
    address: str = ""

    @property
    def target(self) -> httpx.URL:
        """The URL that is connected to."""
        return self.url.copy_with(host=self.address) if self.address else self.url

    @property
    def headers(self) -> httpx.Headers:
        """The headers of a request."""
        headers = self.credentials.copy()
        headers["Host"] = self.url.netloc.decode("ascii")
        return headers

    @property
    def extensions(self) -> dict[str, str]:
        """The name that a certificate has to bear."""
        return {"sni_hostname": self.url.host} if self.address else {}

    def towards(self, url: httpx.URL) -> Endpoint:
        """Return the endpoint that `url` is, with our credentials where scheme, host and port stay the same."""
        if _origin(url) == _origin(self.url):
            return replace(self, url=url)
        return Endpoint(url, address=self.address if url.host == self.url.host else "")


@dataclass(frozen=True)
class Answer:
    """The SDP that answered our offer, from which host, and what to DELETE at the end."""

    sdp: str
    host: str
    session: Endpoint | None


def endpoint_of(url: str) -> Endpoint:
    """Return the endpoint that a whep:// URL means."""
    parts = urls.split(url)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    token = next((value for key, value in pairs if key == "token"), None)
    query = urlencode([(key, value) for key, value in pairs if key != "token"])
    host = parts.netloc.rpartition("@")[2]
    scheme = "https" if parts.scheme == "wheps" else "http"
    auth = None
    if parts.username is not None:
        auth = httpx.BasicAuth(unquote(parts.username), unquote(parts.password or ""))
    credentials = httpx.Headers()
    if token is not None:
        credentials = httpx.Headers({b"Authorization": b"Bearer " + token.encode()})
    return Endpoint(httpx.URL(urlunsplit((scheme, host, parts.path, query, ""))), credentials, auth)


class Signalling:
    """The requests of one WHEP session. Use `client` as a context around it."""

    def __init__(self, url: str, access: Access, *, verify: bool) -> None:
        self._url, self._shown, self._access = url, urls.mask(url), access
        self.client = httpx.AsyncClient(
            timeout=SIGNALLING_TIMEOUT, verify=tls.context(verify=verify), trust_env=False
        )

    async def post(self, offer: str) -> Answer:
        """Send our offer, to where redirects lead. Raises SourceError."""
        endpoint = first = endpoint_of(self._url)
        try:
            async with asyncio.timeout(SIGNALLING_TIMEOUT):
                for _ in range(MAX_REDIRECTS + 1):
                    endpoint = await self._checked(endpoint)
                    response, body = await self._send(endpoint, offer)
                    if not (target := self._redirect(response, endpoint)):
                        break
                    endpoint = endpoint.towards(target)
                else:
                    raise self.unavailable(f"redirects more than {MAX_REDIRECTS} times")
        except TimeoutError:
            raise self.unavailable(f"no answer within {SIGNALLING_TIMEOUT:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            why = tls.explained(error) or f"no answer: {str(error) or type(error).__name__}"
            raise self.unavailable(why) from error
        is_first = _origin(endpoint.url) == _origin(first.url)
        self._check(response.status_code, body, is_first=is_first)
        if not body.startswith(b"v=0") or len(body) > MAX_SDP:
            raise NotVideo(f"{self._shown}: answers without SDP: is it a WHEP address?")
        return Answer(
            body.decode(errors="replace"), endpoint.url.host, _session(response, endpoint)
        )

    async def delete(self, session: Endpoint) -> None:
        """End the session. Never raises for what the other side does."""
        try:
            await self.client.request(
                "DELETE",
                session.target,
                timeout=GOODBYE_TIMEOUT,
                headers=session.headers,
                auth=session.auth,
                extensions=session.extensions,
            )
        except httpx.HTTPError:
            return  # the other side will notice by itself that nobody listens

    def unavailable(self, what: str) -> SourceUnavailable:
        """Return an error about this source."""
        return SourceUnavailable(f"{self._shown}: {urls.scrub(what, self._url)}")

    async def _checked(self, endpoint: Endpoint) -> Endpoint:
        """Return the endpoint at an address that may be reached. Raises SourceDenied."""
        if not self._access.limits_hosts or endpoint.address:
            return endpoint
        scheme = "wheps" if endpoint.url.scheme == "https" else "whep"
        port = endpoint.url.port or _PORTS[endpoint.url.scheme]
        url = f"{scheme}://{endpoint.url.netloc.decode('ascii')}/"
        try:
            address, *_ = await self._access.resolve(url, port)
        except ConfigError as error:
            raise self.unavailable("it redirects to a host that can't be one") from error
        return replace(endpoint, address=address)

    async def _send(self, endpoint: Endpoint, offer: str) -> tuple[httpx.Response, bytes]:
        """Return the response and its body, of which no more than needed is read."""
        headers = endpoint.headers
        headers.update({"Content-Type": SDP, "Accept": SDP})
        async with self.client.stream(
            "POST",
            endpoint.target,
            content=offer,
            headers=headers,
            auth=endpoint.auth,
            extensions=endpoint.extensions,
        ) as response:
            body = b""
            async for part in response.aiter_bytes():
                body += part
                if len(body) > MAX_SDP:
                    break
            return response, body

    def _redirect(self, response: httpx.Response, endpoint: Endpoint) -> httpx.URL | None:
        """Return where the offer is to be posted again. None where this is the answer."""
        location = response.headers.get("location")
        if response.status_code not in _REDIRECTS or not location:
            return None
        target = endpoint.url.join(location)
        if target.scheme not in _PORTS or not target.host:
            raise NotVideo(f"{self._shown}: redirects to something that is not HTTP")
        return target.copy_with(fragment=None, username=None, password=None)

    def _check(self, status: int, body: bytes, *, is_first: bool) -> None:
        """Raise SourceError where a response is no success."""
        if status in (401, 403):
            why = "check user, password or token"
            if not is_first:
                why = "it redirects to another host, which is not told user, password or token"
            raise SourceDenied(f"{self._shown}: HTTP {status}: {why}")
        if status == 404:
            raise self.unavailable("HTTP 404: no such stream there, or nobody sends it now")
        if 400 <= status < 500 and status not in (408, 429):
            said = " ".join(body[:200].decode(errors="replace").split())
            said = "".join(char for char in said if char.isprintable())
            raise self.unavailable(
                f"HTTP {status}: our offer was refused{said and f' ({said})'};"
                f" it asks for video as {receivable()}"
            )
        if status >= 400:
            raise self.unavailable(f"HTTP {status}")
        if not 200 <= status < 300:
            raise NotVideo(f"{self._shown}: answers HTTP {status}: is it a WHEP address?")


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or _PORTS.get(url.scheme)


def _session(response: httpx.Response, endpoint: Endpoint) -> Endpoint | None:
    """Return what to DELETE at the end. Never on another host than answered."""
    location = response.headers.get("location")
    if not location:
        return None
    try:
        url = endpoint.url.join(location)
    except httpx.InvalidURL:
        return None
    return endpoint.towards(url) if url.host == endpoint.url.host else None
