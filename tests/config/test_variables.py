"""Variables in a URL: encoded where their place asks for it, else taken as written, or refused."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from stream_sttm.config import variables
from stream_sttm.config.loading import load
from stream_sttm.errors import ConfigError

HARD = "p@ss:w/o?r#d %&=ü"  # whatever a password may hold


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("rtsp://${X}/live", "10.0.0.5:8554", "rtsp://10.0.0.5:8554/live"),
        ("rtsp://${X}:554/live", "cam.local", "rtsp://cam.local:554/live"),
        ("rtsp://10.0.0.5:${X}/live", "8554", "rtsp://10.0.0.5:8554/live"),
        ("rtsp://${X}/live", "[fe80::1]:554", "rtsp://[fe80::1]:554/live"),
        ("rtsp://10.0.0.5/${X}", "live/main", "rtsp://10.0.0.5/live/main"),
        ("rtsp://10.0.0.5/${X}", "cam?channel=1&subtype=0", "rtsp://10.0.0.5/cam?channel=1&subtype=0"),
        ("rtsp://10.0.0.5/live${X}", "#transport=udp", "rtsp://10.0.0.5/live#transport=udp"),
        ("rtsp://10.0.0.5/${X}", "a b/ü", "rtsp://10.0.0.5/a%20b/%C3%BC"),
        ("rtsp://u@10.0.0.5/cam?id=${X}", "a/b&c", "rtsp://u@10.0.0.5/cam?id=a%2Fb%26c"),
        ("mqtt://${X}/home", "broker.local:1883", "mqtt://broker.local:1883/home"),
        ("mqtt://broker/${X}", "home/cams", "mqtt://broker/home/cams"),
        ("https://${X}/door#send=events", "hooks.example", "https://hooks.example/door#send=events"),
        ("rtsp://${X}@10.0.0.5/live", "viewer:secret", "rtsp://viewer:secret@10.0.0.5/live"),
        ("${X}", "rtsp://u:p@10.0.0.5:8554/live", "rtsp://u:p@10.0.0.5:8554/live"),
        ("no URL ${X}", "a/b", "no URL a/b"),
    ],
)  # fmt: skip
def test_a_value_is_encoded_only_where_its_place_asks_for_it(
    monkeypatch: pytest.MonkeyPatch, text: str, value: str, expected: str
) -> None:
    monkeypatch.setenv("X", value)
    assert variables.expand(text) == (expected, [])


@pytest.mark.parametrize(
    "text",
    [
        "rtsp://viewer:${X}@10.0.0.5/live",
        "mqtts://${USER_OF_X}:${X}@broker:8883/home",
        "postgresql://app:${X}@db/answers",
    ],
)
def test_a_password_may_hold_any_character(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("X", HARD)
    monkeypatch.setenv("USER_OF_X", "us@er")
    url, faults = variables.expand(text)
    assert not faults
    parts = urlsplit(url)
    assert unquote(parts.password or "") == HARD
    assert parts.hostname == urlsplit(text.replace("${X}", "x")).hostname


def test_a_secret_in_an_option_is_kept_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X", HARD)
    url, _ = variables.expand("https://hooks.example/door#secret=${X}&send=events")
    _, secret, send = url.partition("#")[2].replace("&", "=").split("=")[:3]
    assert unquote(secret) == HARD
    assert send == "send"


@pytest.mark.parametrize(
    "value", ["user:pw@10.0.0.5", "10.0.0.5/live", "two words", "rtsp://x", "fe80::7"]
)
@pytest.mark.parametrize(
    "text", ["rtsp://${X}/live", "mqtt://broker:${X}/a", "https://${X}.example/a"]
)
def test_what_can_be_no_host_is_a_fault_that_does_not_repeat_it(
    monkeypatch: pytest.MonkeyPatch, text: str, value: str
) -> None:
    monkeypatch.setenv("X", value)
    _, (fault,) = variables.expand(text)
    assert "the value of ${X} can't be a host or port of a URL" in fault
    assert value not in fault


@pytest.mark.parametrize(
    "line",
    [
        "streams: {cam: {source: 'rtsp://${X}/live'}}",
        "streams: {cam: {source: ['rtsp://cam/live', 'whep://${X}/live']}}",
        "sinks: ['mqtt://${X}/home']",
        "sinks: ['https://${X}/hook']",
        "store: {path: 'postgresql://app@${X}/answers'}",
    ],
)
def test_a_host_that_can_not_be_is_told_with_its_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str
) -> None:
    monkeypatch.setenv("X", "hunter2@10.0.0.5")
    file = tmp_path / "config.yaml"
    file.write_text(line)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert "can't be a host or port" in str(caught.value)
    assert line.partition(":")[0] in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["rtsp://10.0.0.5%3A8554/live", "rtsp://%5Bfe80%3A%3A1%5D/live", "rtsp://a b/live"]
)
def test_a_host_that_is_percent_encoded_is_no_host(tmp_path: Path, url: str) -> None:
    from workers.config_check import faults_of

    file = tmp_path / "config.yaml"
    file.write_text(f"streams: {{cam: {{source: '{url}'}}}}")
    with pytest.raises(ConfigError, match=r"streams\.cam\.source: .*host or port"):
        load(file, check=faults_of)
