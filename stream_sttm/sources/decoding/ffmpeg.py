"""FFmpeg through PyAV: the options with which it decodes, and its errors as ours, in one line without secrets."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import av
from av.container import InputContainer

from stream_sttm import urls
from stream_sttm.errors import NotVideo, SourceDenied, SourceError, SourceUnavailable
from stream_sttm.sources.decoding.protocol import Request
from stream_sttm.sources.network.hls import Segment

_LIVE = {"fpsprobesize": "0", "analyzeduration": "3000000"}
# What an RTSP stream holds is told beforehand, so there is little to find out by waiting.
_RTSP = {"analyzeduration": "500000"}
_DENIED = (av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError)
_NOT_VIDEO = (av.error.InvalidDataError, av.error.LookupError, av.error.PatchWelcomeError)
_LATE = (av.error.ExitError, av.error.TimeoutError)


def open_container(
    request: Request, noted: Callable[[list[Segment]], None] = lambda _: None
) -> AbstractContextManager[InputContainer]:
    """Open the container of a request, within twice `limits.open` seconds. Raises FFmpegError or SourceError."""
    scheme = urls.split(request.url).scheme
    probe = {"max_pixels": str(request.max_pixels)}
    if scheme == "file":
        return request.opening.open(probe, None)
    limits = request.limits
    silence = f"{limits.silence * 1e6:.0f}"
    is_rtsp = scheme.startswith("rtsp")
    options = probe | _LIVE | (_RTSP | {"timeout": silence} if is_rtsp else {"rw_timeout": silence})
    return request.opening.open(options, (limits.open, limits.silence), noted)


def mapped(
    error: av.error.FFmpegError, request: Request, *, is_open: bool, waited: float
) -> SourceError:
    """FFmpeg's error as one of ours; `waited` seconds after it was told to open the address."""
    shown = urls.mask(request.url)
    why = urls.scrub(error.strerror or type(error).__name__, request.url)
    if isinstance(error, _DENIED):
        return SourceDenied(f"{shown}: access denied ({why}): check user and password")
    if isinstance(error, av.error.ProtocolNotFoundError):
        scheme = urls.split(request.url).scheme
        return SourceUnavailable(
            f"{shown}: the FFmpeg in this PyAV knows no {scheme}://: use rtsp:// or build PyAV with it"
        )
    if isinstance(error, av.error.HTTPNotFoundError):
        return SourceUnavailable(f"{shown}: no such stream there (404): check the path")
    if isinstance(error, _LATE) and is_open:
        return SourceUnavailable(f"{shown}: no data for {request.limits.silence:g} s")
    # an interrupted RTSP handshake looks like invalid data
    is_file = urls.split(request.url).scheme == "file"  # which is never late, but on a busy machine
    if not is_file and (
        isinstance(error, _LATE) or (not is_open and waited >= request.limits.open)
    ):
        return SourceUnavailable(f"{shown}: answers, but sends no video in time")
    if isinstance(error, _NOT_VIDEO):
        return NotVideo(f"{shown}: not a video that can be read: {why}")
    return SourceUnavailable(f"{shown}: {why}")
