"""Spellings of a stream's source: our URLs, go2rtc's where they map directly, and options after a '#'.

    rtsp://cam/live#transport=udp          webrtc:http://host:1984/api/webrtc?src=door
    rtsps://cam/live#verify=false          v4l2:device?video=/dev/video0&video_size=1280x720

Pure: knows which options a scheme has, not what they do. A message never repeats a value, which may be a password.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl, quote, urlencode

from stream_sttm import registry, urls
from stream_sttm.errors import ConfigError

_VERIFY = {"verify": ("true", "false")}
_SILENT = {
    "media": ("video",),
    "backchannel": ("0",),
}  # options of go2rtc that change nothing here
_RTSP = {"transport": ("tcp", "udp", "http"), **_SILENT}
OPTIONS: dict[str, Mapping[str, tuple[str, ...]]] = {
    "rtsp": _RTSP,
    "rtsps": {**_RTSP, **_VERIFY},
    "http": {},
    "https": _VERIFY,
    "rtmp": {},
    "rtmps": _VERIFY,
    "srt": {},
    "whep": {},
    "wheps": _VERIFY,
    "whip": {},
    "file": {},
    "v4l2": {},
}
_WEBRTC = {"http": "whep", "https": "wheps"}
_INSECURE = {"rtspx": "rtsps", "httpx": "https"}
_NOT_OURS = ("exec", "echo", "expr", "onvif", "homekit", "isapi", "dvrip", "nest", "ring", "tapo", "kasa")  # fmt: skip


def plain(source: str) -> str:
    """Return `source` as a URL. What is no known spelling of one is returned unchanged."""
    head, colon, rest = source.partition(":")
    if source == "whip:":
        return "whip://"
    if head == "webrtc" and (scheme := _WEBRTC.get(rest.partition("://")[0])):
        return f"{scheme}://{rest.partition('://')[2]}"
    if head == "ffmpeg" and "://" in rest:
        return rest
    if head == "v4l2" and rest.startswith("device?"):
        return _device(rest.removeprefix("device?"))
    if head in _INSECURE and rest.startswith("//"):
        return f"{_INSECURE[head]}:{rest}#verify=false"
    if colon and head in (*_NOT_OURS, "webrtc", "ffmpeg"):
        raise ConfigError(
            f"the source {head}: of go2rtc is not understood here: give the camera's rtsp://, http:// or whep:// URL,"
            " or one of go2rtc's own: rtsp://host:8554/name"
        )
    return source


def options(url: str) -> tuple[str, dict[str, str]]:
    """Split `url` into the URL before its '#' and the options after it. Raises ConfigError for an unknown option."""
    scheme = urls.split(url).scheme
    if scheme not in OPTIONS:  # another package's scheme, which reads its own fragment
        return url, {}
    bare, _, fragment = url.partition("#")
    known, found = OPTIONS[scheme], dict[str, str]()
    for part in filter(None, fragment.split("#")):
        key, _, value = part.partition("=")
        if key not in known:
            # not repeated where it may be the rest of a password with a bare '#'
            word = f" {key!r}" if key.isidentifier() and "@" not in part else ""
            hint = registry.suggest(key, sorted(known)) if word else ""
            raise ConfigError(f"{urls.mask(url)}: {scheme}:// has no such option{word}{hint}")
        if value not in known[key]:
            raise ConfigError(f"{urls.mask(url)}: {key} must be {' or '.join(known[key])}")
        found[key] = value
    return bare, found


def _device(query: str) -> str:
    """Return go2rtc's v4l2:device?video=/dev/video0&... as v4l2:///dev/video0?..."""
    pairs = parse_qsl(query, keep_blank_values=True)
    path = next((value for key, value in pairs if key == "video"), "")
    rest = urlencode([(key, value) for key, value in pairs if key != "video"])
    return f"v4l2://{quote(path)}{'?' if rest else ''}{rest}"
