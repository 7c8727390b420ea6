"""Facts about motion JPEG: the pictures of a body come out whole, whatever the camera writes around them."""

import io

import numpy as np
import pytest
from PIL import Image

from stream_sttm.errors import NotVideo
from stream_sttm.sources.network.motion_jpeg import MAX_BETWEEN, MotionJpeg, is_motion_jpeg


def _picture(seed, **options):
    """A JPEG with noise, so that its data is full of stuffed bytes."""
    noise = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", **options)
    return buffer.getvalue()


THUMBNAIL = _picture(9)
EXIF = b"Exif\0\0" + THUMBNAIL
PICTURES = [
    _picture(0),
    _picture(1, progressive=True),
    _picture(2, exif=EXIF),  # a JPEG within a marker segment
    _picture(3, restart_marker_blocks=2),
]


class Said:
    """A body that comes in pieces of `size` bytes."""

    def __init__(self, text, size=1000, content_type="multipart/x-mixed-replace"):
        self.content_type = content_type
        self._pieces = [text[at : at + size] for at in range(0, len(text), size)]

    def read(self, _size):
        return self._pieces.pop(0) if self._pieces else b""

    def peek(self):
        return self._pieces[0] if self._pieces else b""

    def line(self, what):
        return f"http://camera/: {what}"


def _cut(text, **options):
    said = Said(text, **options)
    file = MotionJpeg(said, said)
    got = b""
    while piece := file.read(999):
        got += piece
    parts = got.split(b"--next\r\n")[1:]
    pictures = []
    for part in parts:
        head, _, picture = part.partition(b"\r\n\r\n")
        assert b"Content-Type: image/jpeg\r\n" in head + b"\r\n"
        assert picture.endswith(b"\r\n")
        assert f"Content-Length: {len(picture) - 2}".encode() in head
        pictures.append(picture[:-2])
    return pictures


def _part(picture, line=b"--x", heads=(b"Content-Type: image/jpeg",), nl=b"\r\n", end=b"\r\n"):
    lines = [line, *heads] if line is not None else [*heads]
    return nl.join([*lines, b"", b""]) + picture + end


LENGTH = b"Content-Length: %d"
SPELLINGS = {
    "plain": lambda i, p: _part(p),
    "no first boundary": lambda i, p: _part(p, line=b"--x" if i else None),
    "no boundaries at all": lambda i, p: p,
    "no part types": lambda i, p: _part(p, heads=[LENGTH % len(p)]),
    "no headers of parts": lambda i, p: _part(p, heads=[]),
    "image/jpg": lambda i, p: _part(p, heads=[b"content-type:image/jpg"]),
    "lines without dashes": lambda i, p: _part(p, line=b"x"),
    "lines of another boundary": lambda i, p: _part(p, line=b"--elsewhere"),
    "lengths too small": lambda i, p: _part(p, heads=[LENGTH % (len(p) - 400)]),
    "lengths too large": lambda i, p: _part(p, heads=[LENGTH % (len(p) + 4000)]),
    "lengths of zero": lambda i, p: _part(p, heads=[LENGTH % 0]),
    "lengths that are no number": lambda i, p: _part(p, heads=[b"Content-Length: many"]),
    "bare line feeds": lambda i, p: _part(p, nl=b"\n", end=b""),
    "nothing after pictures": lambda i, p: _part(p, end=b""),
    "padding after pictures": lambda i, p: _part(p, end=bytes(700) + b"\r\n\r\n\r\n"),
}


@pytest.mark.parametrize("size", [7, 100_000])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_picture_comes_whole_however_its_part_is_written(spelling, size):
    text = b"".join(SPELLINGS[spelling](i, each) for i, each in enumerate(PICTURES))
    assert _cut(text, size=size) == PICTURES


def test_a_picture_that_was_cut_off_is_left_out():
    broken = [PICTURES[0], PICTURES[1][: len(PICTURES[1]) // 2], PICTURES[2], PICTURES[3][:-2]]
    assert _cut(b"".join(map(_part, broken))) == [PICTURES[0], PICTURES[2]]


def test_a_body_without_pictures_ends_in_one_line():
    with pytest.raises(NotVideo, match="http://camera/: its parts hold no JPEG"):
        _cut(b"<html>" * MAX_BETWEEN, size=1 << 20)


def test_a_picture_without_end_is_not_read_without_end(monkeypatch):
    monkeypatch.setattr("stream_sttm.sources.network.motion_jpeg.MAX_PICTURE", 1 << 20)
    with pytest.raises(NotVideo, match="more than"):
        _cut(PICTURES[0][:-2] + bytes(2 << 20), size=1 << 16)


@pytest.mark.parametrize(
    ("content_type", "text", "is_it"),
    [
        ("multipart/x-mixed-replace", b"", True),
        ("multipart/mixed", b"", True),
        ("", _part(PICTURES[0]), True),
        ("application/octet-stream", b"\r\n" + _part(PICTURES[0]), True),
        ("image/jpeg", _part(PICTURES[0], line=None), True),
        ("image/jpeg", PICTURES[0], False),
        ("text/plain", b"--no pictures here", False),
        ("video/mp4", _part(PICTURES[0]), False),
    ],
)
def test_motion_jpeg_is_known_by_its_type_or_its_first_part(content_type, text, is_it):
    assert is_motion_jpeg(Said(text, content_type=content_type)) is is_it
