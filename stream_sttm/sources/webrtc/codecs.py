"""Which video codecs a peer can receive, and what an SDP that names none of them is told."""

from __future__ import annotations

from collections.abc import Iterable

from aiortc import RTCRtpReceiver
from aiortc.rtcrtpparameters import RTCRtpCodecCapability, RTCRtpCodecParameters
from aiortc.sdp import MediaDescription, SessionDescription, parse_h264_profile_level_id

_AUXILIARY = ("rtx", "red", "ulpfec", "flexfec-03")  # formats that carry no pictures of their own
_PROFILE = "profile-level-id"


def receivable() -> str:
    """Return the video codecs that can be received, as text."""
    found = RTCRtpReceiver.getCapabilities("video")
    return _listed([] if found is None else found.codecs)


def unmet(sdp: str) -> str | None:
    """Return what is wrong where none of an SDP's video codecs can be received. None where one can."""
    videos = [one for one in SessionDescription.parse(sdp).media if one.kind == "video"]
    codecs = [codec for video in videos for codec in video.rtp.codecs]
    if not codecs or any(_is_receivable(video) for video in videos):
        return None
    return f"its video is {_listed(codecs)}; what can be received is {receivable()}"


def _is_receivable(video: MediaDescription) -> bool:
    capabilities = RTCRtpReceiver.getCapabilities("video")
    own = [] if capabilities is None else capabilities.codecs
    return any(_fits(theirs, ours) for theirs in video.rtp.codecs for ours in own)


def _fits(theirs: RTCRtpCodecParameters, ours: RTCRtpCodecCapability) -> bool:
    if _name(theirs).lower() != _name(ours).lower() or _name(theirs).lower() in _AUXILIARY:
        return False
    return _name(theirs).upper() != "H264" or _h264(theirs) == _h264(ours)


def _h264(codec: RTCRtpCodecParameters | RTCRtpCodecCapability) -> tuple[object, object]:
    """Return what has to be the same on both sides."""
    parameters = codec.parameters
    try:
        profile, _ = parse_h264_profile_level_id(str(parameters.get(_PROFILE, "42E01F")))
    except ValueError:
        return None, None
    return str(parameters.get("packetization-mode", "0")), profile


def _listed(codecs: Iterable[RTCRtpCodecParameters | RTCRtpCodecCapability]) -> str:
    """Return the names of codecs that carry pictures, each once, H.264 with its profile."""
    names = dict.fromkeys(
        f"H264 (profile {codec.parameters[_PROFILE]})"
        if _name(codec).upper() == "H264" and _PROFILE in codec.parameters
        else _name(codec)[:16]
        for codec in codecs
        if _name(codec).lower() not in _AUXILIARY
    )
    return ", ".join(list(names)[:8]) or "nothing"


def _name(codec: RTCRtpCodecParameters | RTCRtpCodecCapability) -> str:
    return codec.mimeType.partition("/")[2]
