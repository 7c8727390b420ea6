"""How a source may be spelt: what is mapped, what is refused, and that nothing secret is repeated."""

from __future__ import annotations

import pytest

from stream_sttm.config import source_url
from stream_sttm.config.streams import StreamSettings
from stream_sttm.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ("rtsp://u:p@cam/x#transport=udp", "rtsp://u:p@cam/x#transport=udp"),
        ("whip:", "whip://"),
        ("webrtc:http://h:1984/api/webrtc?src=x", "whep://h:1984/api/webrtc?src=x"),
        ("webrtc:https://h/door/whep", "wheps://h/door/whep"),
        ("ffmpeg:rtsp://cam/x", "rtsp://cam/x"),
        ("rtspx://10.0.0.1:7441/key", "rtsps://10.0.0.1:7441/key#verify=false"),
        ("httpx://cam/x.m3u8", "https://cam/x.m3u8#verify=false"),
        (
            "v4l2:device?video=/dev/video0&input_format=mjpeg&video_size=1280x720",
            "v4l2:///dev/video0?input_format=mjpeg&video_size=1280x720",
        ),
        ("v4l2:device?video=/dev/video0", "v4l2:///dev/video0"),
        ("no url", "no url"),
    ],
)
def test_a_known_spelling_is_mapped_and_any_other_left(given: str, plain: str) -> None:
    assert source_url.plain(given) == plain
    assert source_url.plain(plain) == plain


def test_options_are_taken_off_the_url() -> None:
    url = "rtsps://u:p@cam/x?y=1#transport=http#verify=false#media=video#backchannel=0"
    bare, options = source_url.options(url)
    assert bare == "rtsps://u:p@cam/x?y=1"
    assert options == {
        "transport": "http", "verify": "false", "media": "video", "backchannel": "0",
    }  # fmt: skip
    assert source_url.options("other://x#any=thing") == ("other://x#any=thing", {})


def test_the_rest_of_a_password_is_not_repeated_as_an_option() -> None:
    for url in ("rtsp://u:12#hunter2@cam/x", "rtsp://cam/x#hunter2!=1", "rtsp://cam/x#verify=hunter2"):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            source_url.options(url)
        assert "hunter2" not in str(caught.value)


def test_a_stream_has_one_url_or_several() -> None:
    one = StreamSettings(source="rtspx://cam/x")
    assert one.candidates == ("rtsps://cam/x#verify=false",)
    two = StreamSettings(source=["rtsp://cam/main", "webrtc:http://h/whep"])
    assert two.candidates == ("rtsp://cam/main", "whep://h/whep")
    assert two.source == ["rtsp://cam/main", "webrtc:http://h/whep"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "1 to 8"),
        (["rtsp://a/x"] * 9, "1 to 8"),
        (["rtsp://a/x", 5], "must be a URL, or a list"),
        ({"a": 1}, "must be a URL, or a list"),
        (["rtsp://a/x", "whip:"], "can't stand beside"),
        ("exec:hunter2", "not understood here"),
        (["rtsp://a/x", "hunter2"], "not a URL"),
    ],
)
def test_a_source_that_can_not_be_is_refused(source: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        StreamSettings.model_validate({"source": source})
    assert "hunter2" not in str(caught.value)
