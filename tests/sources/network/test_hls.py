"""Facts about live playlists: what was given out is not given out again, whatever the encoder does."""

import asyncio
import re

import pytest

from stream_sttm.errors import SourceUnavailable
from stream_sttm.sources import open_source
from stream_sttm.sources.decoding.protocol import Limits
from stream_sttm.sources.network import hls
from stream_sttm.sources.network.hls import MOST_REMEMBERED, Progress, listed
from stream_sttm.sources.video import VideoSource
from stream_sttm.types import StreamState
from tests.support.http_server import site, write_playlist
from tests.support.resources import until
from tests.workers.test_ingest import ingesting

AT = "http://camera/hls/live.m3u8"


def playlist(first, names, *, more=(), target=2):
    """A live playlist; `more` are lines before segments, by index."""
    lines = ["#EXTM3U", f"#EXT-X-TARGETDURATION:{target}", f"#EXT-X-MEDIA-SEQUENCE:{first}"]
    for index, name in enumerate(names):
        lines += dict(more).get(index, [])
        lines += ["#EXTINF:2.0,", name]
    return "\n".join([*lines, ""])


def numbers(text):
    return [segment.number for segment in listed(text, AT)]


def after(text, *urls):
    """What the next connection knows when these segments of a playlist were given out."""
    progress = Progress()
    progress.read(text, AT)
    for url in urls:
        assert progress.open(url)
    return Progress([list(segment) for segment in progress.segments])  # as JSON brings it back


SEVEN = playlist(5, ["a.ts", "b.ts", "c.ts"])
SHOWN = ("http://camera/hls/a.ts", "http://camera/hls/b.ts?sig=1", "http://camera/hls/x/../c.ts")


def test_of_a_playlist_that_has_not_changed_nothing_is_left():
    assert after(SEVEN, *SHOWN).remaining(SEVEN, AT) is None


def test_of_a_playlist_that_went_on_only_what_is_new_is_left():
    on = playlist(6, ["b.ts?sig=2", "c.ts?sig=2", "d.ts", "e.ts"])
    rest = after(SEVEN, *SHOWN).remaining(on, AT)
    assert numbers(rest) == [8, 9]
    assert "d.ts" in rest
    assert "c.ts" not in rest


def test_what_was_not_given_out_yet_is_left():
    assert numbers(after(SEVEN, SHOWN[0]).remaining(SEVEN, AT)) == [6, 7]


def test_what_holds_for_later_segments_stays_when_earlier_ones_go():
    more = {
        0: ['#EXT-X-MAP:URI="i.mp4"', "#EXT-X-PROGRAM-DATE-TIME:2026"],
        1: ["#EXT-X-DISCONTINUITY"],
    }
    text = playlist(0, ["a.m4s", "b.m4s", "c.m4s"], more=more)
    rest = after(text, *(f"http://camera/hls/{x}.m4s" for x in "ab")).remaining(text, AT)
    assert 'EXT-X-MAP:URI="i.mp4"' in rest
    assert "PROGRAM-DATE-TIME" not in rest
    assert "DISCONTINUITY" not in rest
    assert numbers(rest) == [2]


@pytest.mark.parametrize(
    "text",
    [
        playlist(0, ["a.ts", "b.ts", "c.ts"]),  # the encoder was restarted and counts anew
        playlist(500, ["a.ts", "b.ts", "c.ts"]),  # its names come round again
        playlist(90, ["n.ts", "o.ts"]),  # a long break
    ],
)
def test_an_encoder_that_was_restarted_or_reuses_names_is_new(text):
    assert after(SEVEN, *SHOWN).remaining(text, AT) == text


def test_an_older_copy_of_the_playlist_is_not_taken_for_a_restart():
    older = playlist(4, ["z.ts", "a.ts", "b.ts"])
    progress = after(
        playlist(4, ["z.ts", "a.ts", "b.ts", "c.ts"]), "http://camera/hls/z.ts", *SHOWN
    )
    assert progress.remaining(older, AT) is None


def test_a_name_that_stands_for_several_segments_is_counted_for_each():
    text = playlist(0, ["all.mp4", "all.mp4", "all.mp4"])
    progress = after(text, "http://camera/hls/all.mp4", "http://camera/hls/all.mp4")
    assert numbers(progress.remaining(text, AT)) == [2]


def test_what_is_remembered_is_bounded():
    progress = Progress()
    for first in range(3 * MOST_REMEMBERED):
        progress.read(playlist(first, ["a.ts"]), AT)
        progress.open("http://camera/hls/a.ts")
    assert len(progress.segments) == MOST_REMEMBERED


NOW = "Fri, 27 Nov 2026 12:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "is_dead"),
    [
        ({"date": NOW, "last-modified": "Fri, 27 Nov 2026 11:00:00 GMT"}, True),
        ({"date": NOW, "last-modified": NOW, "age": "3600"}, True),
        ({"date": NOW, "last-modified": "Fri, 27 Nov 2026 11:59:50 GMT"}, False),
        ({"date": NOW}, False),
        ({"date": NOW, "last-modified": "yesterday"}, False),
        ({"date": NOW, "last-modified": NOW, "age": "old"}, False),
    ],
)
def test_a_playlist_that_was_last_written_long_ago_is_dead(headers, is_dead):
    assert hls.is_dead(SEVEN, headers) is is_dead


@pytest.fixture(scope="module")
def segments(tmp_path_factory):
    folder = write_playlist(tmp_path_factory.mktemp("hls"), seconds=8).parent
    return {path.name: path.read_bytes() for path in folder.glob("*.ts")}


class Origin:
    """An HLS origin with segments `first` to `last`, a second each, and what was asked of it."""

    def __init__(self, served, segments, last, headers=()):
        self.last, self.served = last, served
        served.pages.update({f"/{name}": body for name, body in segments.items()})
        served.pages["/live.m3u8"] = self._page
        self.headers = headers

    async def _page(self, _head, writer):
        first = max(0, self.last - 2)
        body = playlist(first, [f"live{n}.ts" for n in range(first, self.last + 1)], target=1)
        head = "\r\n".join(
            ["HTTP/1.1 200 x", f"Content-Length: {len(body)}", *self.headers, "", ""]
        )
        writer.write((head + body).encode())
        await writer.drain()

    def asked(self):
        return [int(n) for head in self.served.seen for n in re.findall(r"GET /live(\d)\.ts", head)]


def _source(served, limits=Limits(open=1.0)):  # noqa: B008 - it is frozen
    return VideoSource(served.url("/live.m3u8"), stream="x", fps=30, limits=limits)


async def test_a_connection_after_a_break_gives_only_segments_that_were_not_given(segments):
    async with site() as served, asyncio.timeout(30):
        origin = Origin(served, segments, 2)
        first = _source(served)
        async with first:
            async for _ in first.frames():
                if 2 in origin.asked() and len(first.shown) == 3:
                    break
        before, origin.last = origin.asked(), 4
        second = _source(served)
        second.shown = first.shown
        async with second:
            await anext(second.frames())
        assert before == [0, 1, 2]
        assert 3 in origin.asked()[3:]
        assert not set(origin.asked()[3:]) & {0, 1, 2}


async def test_a_connection_to_a_dead_encoder_gives_nothing_and_says_why(segments):
    async with site() as served, asyncio.timeout(30):
        origin = Origin(served, segments, 2)
        source = _source(served)
        source.shown = [[n, f"/live{n}.ts"] for n in range(3)]
        with pytest.raises(
            SourceUnavailable, match="names no new segment: its encoder has stopped"
        ):
            await source.__aenter__()
        assert origin.asked() == []


async def test_an_encoder_that_died_before_we_came_gives_nothing(segments):
    old = (f"Date: {NOW}", "Last-Modified: Thu, 26 Nov 2026 12:00:00 GMT")
    async with site() as served, asyncio.timeout(30):
        origin = Origin(served, segments, 2, old)
        with pytest.raises(SourceUnavailable, match="its encoder has stopped"):
            await _source(served).__aenter__()
        assert origin.asked() == []


async def test_a_stream_whose_encoder_died_is_online_once_and_never_again(segments):
    async with site() as served, asyncio.timeout(60):
        origin = Origin(served, segments, 2)

        def opener(url, **options):
            return open_source(url, limits=Limits(open=1.0), **options)

        def asked_again():
            return sum("live.m3u8" in head for head in served.seen) > playlists + 6

        url = served.url("/live.m3u8")
        async with ingesting(url, opener=opener, stall_after=1.0) as watched:
            assert await until(lambda: StreamState.OFFLINE in watched.states, 20)
            playlists = sum("live.m3u8" in head for head in served.seen)
            assert await until(asked_again, 20)
            states = list(watched.states)
        assert states.count(StreamState.ONLINE) == 1
        assert states[-1] == StreamState.OFFLINE
        assert states.count(StreamState.STALLED) <= 1
        assert origin.asked() == [0, 1, 2]
