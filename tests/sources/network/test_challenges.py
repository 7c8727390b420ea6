"""Facts about logins: one that can't be done here is not called a wrong password."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from stream_sttm.errors import SourceDenied
from stream_sttm.sources.network.challenges import FFMPEG, HTTPX, obstacle
from stream_sttm.sources.video import VideoSource
from tests.sources.test_video import server
from tests.support.http_server import site

DIGEST = 'Digest realm="c", nonce="n", '


@pytest.mark.parametrize(
    ("challenges", "known", "named"),
    [
        ([DIGEST + "algorithm=SHA-256"], FFMPEG, "algorithm SHA-256"),
        ([DIGEST + 'algorithm="SHA-512-256"'], FFMPEG, "algorithm SHA-512-256"),
        ([DIGEST + "algorithm=MD5", DIGEST + "algorithm=SHA-256"], FFMPEG, "algorithm SHA-256"),
        ([DIGEST + "algorithm=SHA-256", 'Basic realm="c"'], FFMPEG, "algorithm SHA-256"),
        ([DIGEST + 'qop="auth-int"'], FFMPEG, "qop=auth-int"),
        (["Bearer realm=x"], FFMPEG, "login by Bearer"),
        ([DIGEST + "algorithm=SHA-512-256"], HTTPX, "algorithm SHA-512-256"),
        (["Negotiate", "NTLM"], HTTPX, "login by Negotiate, Ntlm"),
        ([DIGEST + 'algorithm=MD5, qop="auth"'], FFMPEG, None),
        ([DIGEST + "algorithm=SHA-256", DIGEST + 'algorithm="MD5"'], FFMPEG, None),
        ([DIGEST + 'algorithm=MD5-sess, qop="auth-int,auth"'], FFMPEG, None),
        (['Digest realm="algorithm=SHA-256", nonce="n"'], FFMPEG, None),
        (['Basic realm="c"'], FFMPEG, None),
        ([], FFMPEG, None),
        ([DIGEST + "algorithm=sha-256"], HTTPX, None),
    ],
)
def test_a_login_that_cannot_be_done_is_named(challenges, known, named):
    why = obstacle(challenges, known)
    assert (why is None) is (named is None)
    assert named is None or named in why


@asynccontextmanager
async def rtsp(*challenges):
    """An RTSP server that wants a login."""

    async def talk(reader, writer):
        while True:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
            number = next(line for line in lines if line.lower().startswith("cseq"))
            if lines[0].startswith("OPTIONS"):
                reply = ["RTSP/1.0 200 OK", number, "Public: DESCRIBE"]
            else:
                demands = [f"WWW-Authenticate: {one}" for one in challenges]
                reply = ["RTSP/1.0 401 Unauthorized", number, *demands]
            writer.write("\r\n".join([*reply, "", ""]).encode())
            await writer.drain()

    async with server(talk) as address:
        yield f"rtsp://me:sesame@{address}/x"


@pytest.mark.parametrize(
    ("challenge", "named"),
    [
        (DIGEST + "algorithm=SHA-256", "Digest with algorithm SHA-256"),
        (DIGEST + "algorithm=MD5", "check user and password"),
        ('Basic realm="c"', "check user and password"),
    ],
)
async def test_a_camera_over_rtsp_whose_login_is_not_known_is_told_from_a_wrong_password(
    challenge, named
):
    async with rtsp(challenge) as url, asyncio.timeout(20):
        with pytest.raises(SourceDenied, match=r"^[^\n]*$") as caught:
            await VideoSource(url).__aenter__()
    assert named in str(caught.value)
    assert ("check user" in str(caught.value)) is ("check user" in named)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("challenge", "named"),
    [
        (DIGEST + "algorithm=SHA-512-256", "algorithm SHA-512-256"),
        (DIGEST + 'qop="auth-int"', "qop=auth-int"),
        ("Bearer", "login by Bearer"),
        (DIGEST + "algorithm=SHA-256", "check user and password"),
    ],
)
async def test_a_camera_over_http_whose_login_is_not_known_is_told_from_a_wrong_password(
    challenge, named
):
    async with site() as served, asyncio.timeout(20):
        served.pages["/x"] = (401, [f"WWW-Authenticate: {challenge}"], b"")
        with pytest.raises(SourceDenied, match=r"^[^\n]*$") as caught:
            await VideoSource(served.url("/x", "me:sesame@")).__aenter__()
    assert named in str(caught.value)
    assert "sesame" not in str(caught.value)
