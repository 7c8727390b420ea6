"""What a source may reach: every spelling of a private address, names that change, links that lead out of a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_sttm.config.streams import SourceRules
from stream_sttm.errors import SourceDenied, SourceUnavailable
from stream_sttm.sources.network.access import EVERYTHING, Access

STRANGER = EVERYTHING.for_strangers()
PRIVATE = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "224.0.0.251", "255.255.255.255", "::1", "::", "fe80::1", "fd00::1", "ff02::1", "::ffff:127.0.0.1",
    "::ffff:a9fe:a9fe", "64:ff9b::7f00:1", "2002:7f00:1::",
]  # fmt: skip


def finding(*addresses):
    async def lookup(_host, _port):
        return addresses

    return lookup


def literal(address):
    return f"rtsp://[{address}]/x" if ":" in address else f"rtsp://{address}/x"


@pytest.mark.parametrize("address", PRIVATE)
async def test_a_stranger_reaches_no_private_address_by_number_or_by_name(address):
    with pytest.raises(SourceDenied, match="private"):
        STRANGER.check(literal(address))
    with pytest.raises(SourceDenied, match="private"):
        await STRANGER.resolve("rtsp://cam.example/x", 554, finding(address))
    assert await EVERYTHING.resolve("rtsp://cam.example/x", 554, finding(address)) == [address]


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "127.1", "localhost"])
async def test_a_strange_spelling_of_loopback_is_resolved_before_it_is_checked(host):
    with pytest.raises(SourceDenied, match="private"):
        await STRANGER.resolve(f"http://{host}:80/", 80)


async def test_of_several_addresses_only_those_that_passed_are_handed_out():
    found = await STRANGER.resolve("rtsp://x/", 554, finding("10.0.0.1", "93.184.216.34", "::1"))
    assert found == ["93.184.216.34"]


async def test_what_is_named_is_allowed_even_where_it_is_private():
    access = Access(hosts=("10.1.0.0/16", "door.lan", "*.example.org")).for_strangers()
    for url, found in (
        ("rtsp://10.1.2.3/x", "10.1.2.3"),
        ("rtsp://any.name/x", "10.1.2.3"),
        ("rtsp://any.name/x", "::ffff:10.1.2.3"),
        ("rtsp://DOOR.lan./x", "192.168.0.9"),
        ("rtsp://cam.example.org/x", "93.184.216.34"),
    ):
        assert await access.resolve(url, 554, finding(found)) == [found]
    for url, found in (
        ("rtsp://10.2.2.3/x", "10.2.2.3"),
        ("rtsp://cam.example.org/x", "10.9.0.1"),
        ("rtsp://notexample.org/x", "93.184.216.34"),
        ("rtsp://window.lan/x", "192.168.0.9"),
    ):
        with pytest.raises(SourceDenied, match=r"sources\.hosts"):
            await access.resolve(url, 554, finding(found))


async def test_a_name_that_could_never_be_allowed_is_not_even_looked_up():
    async def lookup(*_):
        raise AssertionError

    with pytest.raises(SourceDenied):
        await Access(hosts=("door.lan",)).resolve("rtsp://me:sesame@other.lan/x", 554, lookup)


async def test_an_unknown_or_impossible_name_is_unavailable():
    for url in ("rtsp://no-such-host.invalid/x", f"rtsp://{'a' * 70}.com/x", "rtsp:///x"):
        with pytest.raises(SourceUnavailable):
            await EVERYTHING.resolve(url, 554)


def test_what_connects_to_nobody_is_not_held_to_hosts():
    for url in ("scene://hall?seed=1", "whip://", "file:///srv/a.mp4"):
        Access(hosts=("10.0.0.1",)).check(url)


def test_only_schemes_that_are_named_are_taken():
    access = Access(schemes=("rtsp",))
    access.check("rtsp://cam/x")
    with pytest.raises(SourceDenied, match=r"file:// is not among sources\.schemes"):
        access.check("file:///etc/passwd")


def test_a_stranger_gets_no_file_and_no_device_unless_they_are_named(tmp_path):
    (tmp_path / "a.mp4").write_text("x")
    with pytest.raises(SourceDenied, match=r"sources\.folders"):
        STRANGER.open_file("file:///x", tmp_path / "a.mp4")
    with pytest.raises(SourceDenied, match="devices"):
        STRANGER.check("v4l2:///dev/video0")
    Access(schemes=("v4l2",)).for_strangers().check("v4l2:///dev/video0")
    Access(folders=(str(tmp_path),)).for_strangers().open_file("x", tmp_path / "a.mp4").close()


@pytest.mark.parametrize("way", ["open_file", "real_path"])
def test_neither_dots_nor_links_lead_out_of_the_folders(way: str, tmp_path: Path):
    inside, outside = tmp_path / "in", tmp_path / "in-not"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret.mp4").write_text("x")
    (inside / "film.mp4").write_text("x")
    (inside / "link.mp4").symlink_to(outside / "secret.mp4")
    (inside / "door").symlink_to(outside)
    open_it = getattr(Access(folders=(str(inside),)), way)
    for path in ("link.mp4", "../in-not/secret.mp4", "door/secret.mp4"):
        with pytest.raises(SourceDenied, match=r"outside the folders of sources\.folders"):
            open_it("file:///x", inside / path)
    opened = open_it("file:///x", inside / "film.mp4")
    if way == "open_file":
        opened.close()


def test_a_folder_that_is_itself_a_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.mp4").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    access = Access(folders=(str(tmp_path / "link"),))
    assert access.real_path("x", tmp_path / "link" / "a.mp4") == tmp_path / "real" / "a.mp4"


def test_the_rules_of_a_configuration_become_access():
    assert Access.of(SourceRules()) == EVERYTHING
    rules = SourceRules(schemes=["rtsp"], hosts=["10.0.0.0/8"], private=False, folders=["/srv"])
    assert Access.of(rules) == Access(("rtsp",), ("10.0.0.0/8",), False, ("/srv",))


@pytest.mark.parametrize(
    "rules",
    [
        {"hosts": ["10.0.0.0/99"]},
        {"hosts": ["a b"]},
        {"hosts": ["rtsp://x"]},
        {"hosts": [""]},
        {"folders": ["srv"]},
        {"folder": []},
    ],
)
def test_a_rule_that_can_not_be_is_refused(rules):
    with pytest.raises(ValueError, match=r"must be|not permitted"):
        SourceRules.model_validate(rules)
