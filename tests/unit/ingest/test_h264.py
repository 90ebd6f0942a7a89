"""Frames of H.264 as viewers get them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.ingest.h264 import START_CODE, H264Framer, split_annex_b

SPS, PPS = b"\x67\x42\xc0\x0d\x99", b"\x68\xce\x3c\x80"
IDR, DELTA, UNUSED = b"\x65\x88\x11", b"\x41\x9a\x22", b"\x01\x9a\x22"
"""A keyframe, a frame that others build on, and one that none does."""
SEI = b"\x06\x05\x01"


def annex_b(*units: bytes) -> bytes:
    return b"".join(START_CODE + unit for unit in units)


def lengths(*units: bytes, size: int = 4) -> bytes:
    return b"".join(len(unit).to_bytes(size, "big") + unit for unit in units)


def avcc(size: int = 4) -> bytes:
    head = b"\x01\x42\xc0\x0d" + bytes([0xFC | (size - 1)])
    sps = b"\xe1" + len(SPS).to_bytes(2, "big") + SPS
    return head + sps + b"\x01" + len(PPS).to_bytes(2, "big") + PPS


def test_frames_say_what_they_are() -> None:
    framer = H264Framer()
    frames = [framer.frame(annex_b(each)) for each in (IDR, DELTA, UNUSED)]
    said = [(each.keyframe, each.discardable) for each in frames if each is not None]
    assert said == [(True, False), (False, False), (False, True)]


def test_a_keyframe_has_the_parameter_sets_once() -> None:
    framer = H264Framer()
    framer.configure(annex_b(SPS, PPS))
    for packet in (annex_b(IDR), annex_b(SPS, PPS, SEI, IDR)):
        frame = framer.frame(packet)
        assert frame is not None
        units = list(split_annex_b(frame.data))
        assert [each for each in units if each != SEI] == [SPS, PPS, IDR]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_frames_of_files_get_start_codes(size: int) -> None:
    framer = H264Framer()
    framer.configure(avcc(size))
    assert framer.codec == "avc1.42C00D"
    frame = framer.frame(lengths(IDR, size=size))
    assert frame is not None
    assert frame.data == annex_b(SPS, PPS, IDR)
    delta = framer.frame(lengths(DELTA, size=size))
    assert delta is not None
    assert delta.data == annex_b(DELTA)


def test_parameter_sets_that_come_alone_are_no_frame_and_are_kept() -> None:
    framer = H264Framer()
    assert framer.codec is None
    assert framer.frame(annex_b(SPS)) is None
    assert framer.frame(annex_b(PPS)) is None
    assert framer.codec == "avc1.42C00D"
    frame = framer.frame(annex_b(IDR))
    assert frame is not None
    assert frame.data == annex_b(SPS, PPS, IDR)


def test_another_sps_ends_what_was_known() -> None:
    framer = H264Framer()
    framer.configure(annex_b(SPS, PPS))
    other = b"\x67\x64\x00\x28\x11"
    frame = framer.frame(annex_b(other, IDR))
    assert frame is not None
    assert frame.data == annex_b(other, IDR)
    assert framer.codec == "avc1.640028"


@given(st.binary(max_size=200), st.lists(st.binary(max_size=300), max_size=5))
def test_nonsense_is_left_out(extradata: bytes, packets: list[bytes]) -> None:
    framer = H264Framer()
    framer.configure(extradata)
    for packet in packets:
        frame = framer.frame(packet)
        assert frame is None or len(frame.data) <= 2 * len(packet) + 8 * 4096
