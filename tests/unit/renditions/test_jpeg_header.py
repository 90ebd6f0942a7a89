from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st

from relay.renditions.jpeg_header import (
    MAX_EXAMINED_BYTES,
    read_orientation,
    read_renderable_size,
    read_size,
    with_orientation,
)
from tests.unit.lines import counted_lines


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def header(
    width: int = 640,
    height: int = 360,
    *,
    marker: int = 0xC0,
    precision: int = 8,
    components: int = 3,
    before: bytes = b"",
) -> bytes:
    body = struct.pack(">BHHB", precision, height, width, components) + bytes(3 * components)
    return b"\xff\xd8" + before + segment(marker, body)


def exif(order: str, orientation: int, *, kind: int = 3) -> bytes:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    tiff = mark + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, kind, 1, orientation, 0, 0)
    return segment(0xE1, b"Exif\0\0" + tiff)


def picture(width: int, height: int, *, grey: bool = False) -> bytes:
    pixels = np.zeros((height, width, 1 if grey else 3), np.uint8)
    colours, subsampling = ("GRAY", "Gray") if grey else ("RGB", "420")
    return bytes(simplejpeg.encode_jpeg(pixels, 52, colours, subsampling))


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (640, 360), (33, 17)])
def test_the_size_is_the_one_that_the_encoder_was_given(size: tuple[int, int], grey: bool) -> None:
    assert read_size(picture(*size, grey=grey)) == size


@pytest.mark.parametrize("marker", [0xC0, 0xC1, 0xC2])
def test_baseline_extended_and_progressive_pictures_have_a_size(marker: int) -> None:
    before = segment(0xE0, b"JFIF\0") + segment(0xC4, bytes(20)) + b"\xff\xff"
    assert read_size(header(marker=marker, before=before)) == (640, 360)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8",
        b"\x89PNG" + header(),
        header(components=4),
        header(components=2),
        header(precision=12),
        header(precision=16),
        header(marker=0xC3),
        header(marker=0xC9),
        header(width=0),
        header(height=0),
        header()[:-1],
        header(before=b"\xff\xd9"),
        header(before=segment(0xDA, bytes(8))),
        header(before=b"\xff\xe0\0\0"),
        header(before=b"\xff\xe0\0\1"),
        header(before=b"\0"),
        b"\xff\xd8" + b"\xff" * 1000,
    ],
)
def test_anything_else_has_none(data: bytes) -> None:
    assert read_size(data) is None


@pytest.mark.parametrize(
    "before",
    [
        2 * segment(0xE2, bytes(40_000)),
        segment(0xFE, b"") * 1000,
        b"\xff" * (MAX_EXAMINED_BYTES + 1),
    ],
)
def test_a_header_without_end_is_not_read_to_its_end(before: bytes) -> None:
    assert read_size(header(before=before)) is None


@pytest.mark.parametrize(
    ("size", "renderable"),
    [
        ((1, 1), True),
        ((4096, 3906), True),
        ((4096, 3907), False),
        ((4097, 1), False),
        ((1, 4097), False),
        ((65535, 65535), False),
    ],
)
def test_pictures_that_are_too_large_are_not_renderable(
    size: tuple[int, int], renderable: bool
) -> None:
    assert read_size(header(*size)) == size
    assert read_renderable_size(header(*size)) == (size if renderable else None)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_read_and_noted(order: str, orientation: int) -> None:
    small = with_orientation(picture(16, 8), orientation)
    assert read_orientation(header(before=exif(order, orientation))) == orientation
    assert read_orientation(small) == orientation
    assert read_size(small) == (16, 8)
    assert simplejpeg.decode_jpeg(small).shape == (8, 16, 3)


@pytest.mark.parametrize(
    "before", [b"", exif("<", 0), exif(">", 9), exif("<", 6, kind=4), segment(0xE1, b"Exif\0\0MM")]
)
def test_without_a_valid_orientation_it_is_upright(before: bytes) -> None:
    assert read_orientation(header(before=before)) == 1


@given(
    st.binary(max_size=200),
    st.integers(0, 700),
    st.sampled_from([picture(40, 30), header(before=exif("<", 6)), header(before=exif(">", 3))]),
)
def test_whatever_the_bytes_are_there_is_an_answer(noise: bytes, at: int, base: bytes) -> None:
    for data in (noise, b"\xff\xd8" + noise, base[:at] + noise + base[at + len(noise) :]):
        size = read_size(memoryview(data))
        assert size is None or all(0 < side <= 65535 for side in size)
        assert 1 <= read_orientation(bytearray(data)) <= 8


@given(st.integers(0, 1000))
def test_a_truncated_picture_has_its_size_or_none(end: int) -> None:
    assert read_size(picture(40, 30)[:end]) in (None, (40, 30))


@pytest.mark.parametrize("read", [read_renderable_size, read_orientation])
def test_fill_bytes_take_hardly_any_time(read: Callable[[bytes], object]) -> None:
    data = header(before=bytes([0xFF]) * 60_000)
    with counted_lines() as count:
        assert read(data) in {(640, 360), 1}
    assert count.lines < 1000
