"""Finding cameras: a real probe over UDP, a real ONVIF conversation, and what strangers may answer."""

import asyncio
import re
from contextlib import asynccontextmanager
from urllib.parse import quote

import pytest
import yaml

from stream_sttm.config.settings import Settings
from stream_sttm.errors import SourceDenied, SourceUnavailable
from stream_sttm.sources.network import onvif
from stream_sttm.sources.network.onvif import Camera, Profile, cameras, configuration, profiles
from tests.support.http_server import site

MATCH = """<?xml version="1.0"?><e:Envelope xmlns:e="http://www.w3.org/2003/05/soap-envelope"
 xmlns:d="http://schemas.xmlsoap.org/ws/2005/04/discovery"><e:Body><d:ProbeMatches><d:ProbeMatch>
 <d:Scopes>onvif://www.onvif.org/type/video onvif://www.onvif.org/name/{name}</d:Scopes>
 <d:XAddrs>{addresses}</d:XAddrs></d:ProbeMatch></d:ProbeMatches></e:Body></e:Envelope>"""
SOAP = """<?xml version="1.0"?><s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope"
 xmlns:t="http://www.onvif.org/ver10/device/wsdl" xmlns:m="http://www.onvif.org/ver10/media/wsdl"
 xmlns:o="http://www.onvif.org/ver10/schema"><s:Body>{}</s:Body></s:Envelope>"""
PROFILE = """<m:Profiles token="{0}" fixed="true"><o:Name>{0}</o:Name><o:VideoEncoderConfiguration token="e">
 <o:Name>e</o:Name><o:UseCount>1</o:UseCount><o:Encoding>H264</o:Encoding><o:Resolution><o:Width>{1}</o:Width>
 <o:Height>{2}</o:Height></o:Resolution><o:Quality>1</o:Quality><o:Multicast><o:Address><o:Type>IPv4</o:Type>
 <o:IPv4Address>0.0.0.0</o:IPv4Address></o:Address><o:Port>0</o:Port><o:TTL>0</o:TTL><o:AutoStart>false</o:AutoStart>
 </o:Multicast><o:SessionTimeout>PT1M</o:SessionTimeout></o:VideoEncoderConfiguration></m:Profiles>"""
CLOCK = """<t:GetSystemDateAndTimeResponse><t:SystemDateAndTime><o:DateTimeType>NTP</o:DateTimeType>
 <o:DaylightSavings>false</o:DaylightSavings><o:UTCDateTime><o:Time><o:Hour>1</o:Hour><o:Minute>2</o:Minute>
 <o:Second>3</o:Second></o:Time><o:Date><o:Year>2026</o:Year><o:Month>1</o:Month><o:Day>2</o:Day></o:Date>
 </o:UTCDateTime></t:SystemDateAndTime></t:GetSystemDateAndTimeResponse>"""
SERVICE = """<t:Service><t:Namespace>{}</t:Namespace><t:XAddr>http://{}/onvif</t:XAddr><t:Version><o:Major>2</o:Major>
 <o:Minor>0</o:Minor></t:Version></t:Service>"""
URI = """<m:GetStreamUriResponse><m:MediaUri><o:Uri>{}</o:Uri><o:InvalidAfterConnect>false</o:InvalidAfterConnect>
 <o:InvalidAfterReboot>false</o:InvalidAfterReboot><o:Timeout>PT0S</o:Timeout></m:MediaUri></m:GetStreamUriResponse>"""
FAULT = """<s:Fault><s:Code><s:Value>s:Sender</s:Value><s:Subcode><s:Value xmlns:r="http://www.onvif.org/ver10/error">
 r:NotAuthorized</s:Value></s:Subcode></s:Code><s:Reason><s:Text xml:lang="en">Sender not Authorized</s:Text></s:Reason>
 </s:Fault>"""


@asynccontextmanager
async def answering(*answers):
    """A network whose cameras answer a probe so; yields its address and what was asked."""
    asked = []

    class Cameras(asyncio.DatagramProtocol):
        def connection_made(self, transport):
            self.transport = transport

        def datagram_received(self, probe, sender):
            asked.append(probe)
            for answer in answers:
                self.transport.sendto(answer, sender)

    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Cameras, local_addr=("127.0.0.1", 0))
    try:
        yield transport.get_extra_info("sockname"), asked
    finally:
        transport.close()


def match(addresses, name="Front%20door"):
    return MATCH.format(addresses=addresses, name=name).encode()


async def test_cameras_that_answer_a_probe_are_found_once_under_the_address_they_answer_from():
    answers = [
        match("http://10.9.9.9/onvif/device_service http://127.0.0.1/onvif/device_service"),
        match("http://127.0.0.1/onvif/device_service"),
        match("http://10.0.0.7:8080/onvif/device_service", name="Yard"),
    ]
    async with answering(*answers) as (address, asked):
        found = await cameras(0.3, address)
    assert b"NetworkVideoTransmitter" in asked[0]
    assert found == [
        Camera("http://10.0.0.7:8080/onvif/device_service", "Yard"),
        Camera("http://127.0.0.1/onvif/device_service", "Front door"),
    ]


PLAIN = match("http://127.0.0.1/onvif/services", name="T%C3%BCr")
NAMESPACE = b"http://schemas.xmlsoap.org/ws/2005/04/discovery"
SLOPPY = {
    "plain": PLAIN,
    "blank line before": b"\r\n" + PLAIN,
    "NUL behind": PLAIN + b"\0",
    "byte order mark": b"\xef\xbb\xbf" + PLAIN,
    "newlines in XAddrs": PLAIN.replace(b"http://127", b"\n  http://127"),
    "WS-Discovery 1.1": PLAIN.replace(
        NAMESPACE, b"http://docs.oasis-open.org/ws-dd/ns/discovery/2009/01"
    ),
    "Latin-1 in a name": PLAIN.replace(b"T%C3%BCr", "T\u00fcr".encode("latin-1")),
    "Latin-1 that is called UTF-8": PLAIN.replace(b"T%C3%BCr", b"T\xfcr").replace(
        b'version="1.0"', b'version="1.0" encoding="utf-8"'
    ),
    "UTF-16": PLAIN.decode().replace("1.0", "1.0").encode("utf-16"),
    "undeclared prefixes": re.sub(rb"\sxmlns:d=\"[^\"]*\"", b"", PLAIN),
}


@pytest.mark.parametrize("spelling", SLOPPY)
async def test_a_camera_is_found_however_sloppy_its_answer_is(spelling):
    async with answering(SLOPPY[spelling]) as (address, _):
        assert await cameras(0.2, address) == [
            Camera("http://127.0.0.1/onvif/services", "T\u00fcr")
        ]


async def test_an_ampersand_that_is_not_escaped_costs_no_camera():
    async with answering(match("http://127.0.0.1/x?a=1&b=2", name="R&D")) as (address, _):
        assert await cameras(0.2, address) == [Camera("http://127.0.0.1/x?a=1&b=2", "R&D")]


async def test_what_is_no_answer_is_passed_over():
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaa">]>' + match("http://1.1.1.1/x")
    odd = ("", "file:///etc/passwd", "http://[bad/x", "http://x:99999/", "javascript:x")
    wide = bomb.decode().encode("utf-16")
    answers = [b"", b"\xff\x00" * 100, b"<x", b"<x/>", bomb, wide, *(match(one) for one in odd)]
    async with answering(*answers, match("http://10.0.0.7/x")) as (address, _):
        assert [camera.service for camera in await cameras(0.3, address)] == ["http://10.0.0.7/x"]


def _device(urls, *, denied=False, around=(b"", b"")):
    """A camera's ONVIF service: one page for every request."""

    async def page(head, writer):
        reader = page.reader
        length = int(re.search(r"content-length: (\d+)", head.lower())[1])
        body = (await reader.readexactly(length)).decode()
        base = re.search(r"[Hh]ost: (\S+)", head)[1]
        if "GetSystemDateAndTime" in body:
            text = CLOCK
        elif "GetServices" in body:
            spaces = (
                "http://www.onvif.org/ver10/device/wsdl",
                "http://www.onvif.org/ver10/media/wsdl",
            )
            services = "".join(SERVICE.format(space, base) for space in spaces)
            text = f"<t:GetServicesResponse>{services}</t:GetServicesResponse>"
        elif denied:
            text = FAULT
        elif "GetProfiles" in body:
            assert "PasswordDigest" in body
            told = "".join(
                PROFILE.format(n, 320 * (n + 1), 240 * (n + 1)) for n in range(len(urls))
            )
            text = f"<m:GetProfilesResponse>{told}</m:GetProfilesResponse>"
        else:
            token = int(re.search(r"ProfileToken>(\d+)<", body)[1])
            text = URI.format(urls[token])
        content = around[0] + SOAP.format(text).encode() + around[1]
        status = "400 Bad Request" if "Fault" in text else "200 OK"
        lines = [f"HTTP/1.1 {status}", "Content-Type: application/soap+xml", "Connection: close"]
        writer.write(
            "\r\n".join([*lines, f"Content-Length: {len(content)}", "", ""]).encode() + content
        )
        await writer.drain()

    return page


@asynccontextmanager
async def device(urls, path="/onvif/device_service", **options):
    async with site() as served:
        page = _device(urls, **options)
        answer = served.answer

        async def talk(reader, writer):
            page.reader = reader
            await answer(reader, writer)

        served.answer = talk
        served.pages["/onvif"] = served.pages[path.partition("?")[0]] = page
        yield Camera(served.url(path), "Front door")


async def test_a_camera_names_its_streams_the_largest_first():
    pytest.importorskip("onvif", reason="the extra onvif is not installed")
    urls = [
        "rtsp://10.0.0.7:554/sub",
        "rtsp://10.0.0.7:554/main",
        "http://x/jpg",
        "rtsp://x/${HOME}",
    ]
    async with device(urls) as camera:
        told = await profiles(camera, "viewer", "sesame")
    assert told == [
        Profile("rtsp://10.0.0.7:554/main", (640, 480), "H264"),
        Profile("rtsp://10.0.0.7:554/sub", (320, 240), "H264"),
    ]


@pytest.mark.parametrize("path", ["/onvif/services", "/", "/device/1/onvif?x=1"])
@pytest.mark.parametrize("around", [(b"", b""), (b"\r\n", b""), (b"", b"\0\r\n")])
async def test_a_camera_is_asked_at_the_path_that_it_named(path, around):
    pytest.importorskip("onvif", reason="the extra onvif is not installed")
    async with device(["rtsp://10.0.0.7:554/main"], path, around=around) as camera:
        assert [one.url for one in await profiles(camera, "viewer", "sesame")] == [
            "rtsp://10.0.0.7:554/main"
        ]


async def test_a_camera_that_denies_or_is_gone_is_one_line():
    pytest.importorskip("onvif", reason="the extra onvif is not installed")
    async with device(["rtsp://x/y"], denied=True) as camera:
        with pytest.raises(SourceDenied, match=r"^[^\n]*user and password[^\n]*$"):
            await profiles(camera, "viewer", "sesame")
    with pytest.raises(SourceUnavailable, match=r"^[^\n]*$") as caught:
        await profiles(camera, "viewer", "sesame")
    assert "sesame" not in str(caught.value)


def test_what_was_found_is_a_configuration_that_loads(monkeypatch):
    two = [
        Profile("rtsp://10.0.0.7:554/main?a=1&b=2", (1920, 1080), "H264"),
        Profile("rtsp://old:login@10.0.0.7/sub", (0, 0), ""),
    ]
    found = [
        (Camera("http://10.0.0.7/x", "Front: Door\n#1"), two),
        (Camera("http://10.0.0.8/x", "front door 1"), two[:1]),
        (Camera("http://10.0.0.9/x", "x"), SourceDenied("access denied:\nno")),
        (Camera("http://10.0.0.10/x", ""), []),
        (Camera("http://10.0.0.11/x", ""), two[1:]),
    ]
    text = configuration(found, f"{quote('me@home', safe='')}:${{CAMERA_PASSWORD}}")
    tree = yaml.safe_load(text)
    settings = Settings.model_validate(tree)
    assert list(settings.streams) == ["front_door_1", "front_door_1_2", "camera_10_0_0_11"]
    assert settings.streams["front_door_1"].candidates == (
        "rtsp://me%40home:${CAMERA_PASSWORD}@10.0.0.7:554/main?a=1&b=2",
        "rtsp://me%40home:${CAMERA_PASSWORD}@10.0.0.7/sub",
    )
    assert "  # access denied: no" in text
    assert "1920x1080 H264" in text
    assert "rtsp://10.0.0.7/sub" in configuration(found, "")


def test_a_probe_goes_to_where_cameras_listen():
    assert onvif.MULTICAST == ("239.255.255.250", 3702)
