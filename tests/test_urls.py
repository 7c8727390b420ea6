"""What of a URL may be seen: never a credential, in whichever way it is written."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_sttm import urls
from stream_sttm.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("rtsp://10.0.0.5/live", "rtsp://10.0.0.5/live"),
        ("rtsp://u:p@10.0.0.5:554/live", "rtsp://***@10.0.0.5:554/live"),
        ("rtsp://user@host/live", "rtsp://***@host/live"),
        ("rtsp://u:p@ss@host/live", "rtsp://***@host/live"),
        ("rtsp://me@mail.com:p@host/live", "rtsp://***@host/live"),
        ("rtsp://u:p%40ss%2F@host/live", "rtsp://***@host/live"),
        ("rtsp://u:p@[2001:db8::1]:554/live", "rtsp://***@[2001:db8::1]:554/live"),
        ("mqtt://[::1]/prefix", "mqtt://[::1]/prefix"),
        ("whep://h/live?token=abc&x=1", "whep://h/live?token=***&x=1"),
        ("http://h/v?PASSWORD=abc&user=me", "http://h/v?PASSWORD=***&user=***"),
        ("http://h/v?api_key=&size=480", "http://h/v?api_key=***&size=480"),
        ("http://h/v?access%5Ftoken=abc", "http://h/v?access_token=***"),
        ("scene://hall?seed=7&size=480", "scene://hall?seed=7&size=480"),
        ("http://h/live#token=abc", "http://h/live"),
        ("file:///srv/film@home.mp4", "file:///srv/film@home.mp4"),
        ("rtsp://host/live@1", "rtsp://host/live@1"),
        ("rtsp://h:554/user=admin_password=abc_channel=1", "rtsp://h:554/***"),
        # a bare / ? or # in a password makes the rest of it look like path, query or fragment
        ("rtsp://u:12/34@host/live", "rtsp://***@host/live"),
        ("rtsp://u:12?34@host/live", "rtsp://***@host/live"),
        ("rtsp://u:12#34@host/live", "rtsp://***@host/live"),
        ("rtsp://me@mail.com:12/34@host:554/live?x=1", "rtsp://***@host:554/live"),
        ("rtsp://u:ab/cd@host/live", "***"),
        ("no url at all", "***"),
        ("", "***"),
    ],
)
def test_mask_shows_all_but_the_credentials(url: str, masked: str) -> None:
    assert urls.mask(url) == masked


@given(
    password=st.text(min_size=4, max_size=20).filter(lambda text: text.strip(" *") != ""),
    host=st.sampled_from(["host", "10.0.0.5:554", "[::1]:8554"]),
)
def test_no_encoded_password_outlives_mask_or_scrub(password: str, host: str) -> None:
    try:
        encoded = quote(password, safe="")
    except UnicodeEncodeError:
        return  # half a character can't stand in a URL
    url = f"rtsp://QQ:{encoded}@{host}/live"
    assert urls.mask(url) == f"rtsp://***@{host}/live"
    for text in (url, f"-{encoded}-", f"-{password}-"):
        left = urls.scrub(text, url)
        assert left in (urls.mask(url), "-***-")


@pytest.mark.parametrize(
    "spelling", ["p@s/s w", "p%40s%2Fs%20w", "p%40s/s%20w", "p%40s%2fs%20w", "p%40s%2Fs+w"]
)
def test_scrub_takes_out_a_password_however_it_is_written(spelling: str) -> None:
    url = "rtsp://admin:p%40s%2Fs%20w@host/live"
    assert urls.scrub(f"refused: {spelling}!", url) == "refused: ***!"


def test_scrub_takes_out_the_whole_login() -> None:
    assert urls.scrub("at admin:pw@host", "rtsp://admin:pw@host/live") == "at ***@host"


def test_scrub_takes_out_secrets_of_the_query_as_written_and_as_meant() -> None:
    url = "whep://h/live?token=a%2Bb%3D&x=plain"
    assert urls.scrub("a%2Bb%3D a+b= plain", url) == "*** *** plain"


def test_scrub_takes_out_credentials_in_a_path() -> None:
    url = "rtsp://h/user=admin_password=abc_channel=1/stream"
    assert urls.scrub("no /user=admin_password=abc_channel=1/stream", url) == "no /***/stream"


def test_scrub_leaves_a_text_without_secrets_as_it_is() -> None:
    for url in ("rtsp://host/live", "rtsp://u:pw@host/live", "rtsp://u:@host/live", "no url"):
        assert urls.scrub("connection refused by host:554", url) == "connection refused by host:554"


@pytest.mark.parametrize(
    "url",
    [
        "hunter2",
        "//u:hunter2@host",
        "u:hunter2@host:x",
        "rtsp://u:hunter2@host:x",
        "rtsp://[hunter2",
    ],
)
def test_split_refuses_what_is_no_url_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigError, match="not a URL") as caught:
        urls.split(url)
    assert "hunter2" not in str(caught.value)


def test_shown_masks_a_url_and_leaves_a_name() -> None:
    assert urls.shown("front_door") == "front_door"
    assert urls.shown("rtsp://u:pw@host/") == "rtsp://***@host/"
    assert urls.shown("u:pw@host") != "u:pw@host"
