"""Pictures of a motion JPEG are found by their own format: thumbnails, fill bytes and damage do not end one early."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image

from stream_sttm.sources.network.jpeg_parts import JpegParts


def _picture(seed: int, *, progressive: bool = False) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "a thumbnail would lie here \xff\xd8 \xff\xd9"
    options = {"progressive": progressive, "restart_marker_blocks": 2, "exif": exif.tobytes()}
    Image.fromarray(noise).save(out, "jpeg", quality=90, **options)
    return out.getvalue()


def _with_thumbnail(picture: bytes) -> bytes:
    inner = _picture(99)
    segment = b"\xff\xe1" + (len(inner) + 2).to_bytes(2) + inner
    return picture[:2] + segment + picture[2:]


def _found(body: bytes, cut: int) -> list[bytes]:
    parts, found = JpegParts(), []
    for start in range(0, len(body), cut):
        found += parts.feed(body[start : start + cut])
    return [part.partition(b"\r\n\r\n")[2][:-2] for part in found]


PICTURES = [_picture(0), _picture(1, progressive=True), _with_thumbnail(_picture(2)), _picture(3)]


@pytest.mark.parametrize("cut", [1, 2, 3, 100, 1 << 20])
@pytest.mark.parametrize("between", [b"", b"\r\n--x\r\n\r\n", b"\xff", b"any\xff\x00thing"])
def test_pictures_are_the_same_however_the_body_is_cut(cut: int, between: bytes) -> None:
    assert _found(between + between.join(PICTURES), cut) == PICTURES


def test_a_part_says_how_long_its_picture_is() -> None:
    (part,) = JpegParts().feed(PICTURES[0])
    assert f"Content-Length: {len(PICTURES[0])}\r\n".encode() in part


@pytest.mark.parametrize("cut", [1, 500, 1 << 20])
def test_a_picture_that_is_cut_off_costs_itself_alone(cut: int) -> None:
    body = PICTURES[0] + PICTURES[1][: len(PICTURES[1]) // 2] + PICTURES[2] + PICTURES[3]
    assert _found(body, cut) == [PICTURES[0], PICTURES[2], PICTURES[3]]


def test_what_is_no_picture_is_never_held_without_bound() -> None:
    rng, parts = random.Random(5), JpegParts()
    for _ in range(200):
        assert list(parts.feed(rng.randbytes(1000).replace(b"\xff\xd8", b""))) == []
        assert len(parts._held) <= 1
