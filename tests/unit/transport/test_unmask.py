"""Unmasking in C and without: the same, whatever it is given and wherever that lies in memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.utils import apply_mask as pure

from relay.transport.framing.unmask import unmask

speedups = pytest.importorskip("websockets.speedups", reason="platform: no extension was built")


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4), st.integers(0, 17))
def test_the_extension_and_the_pure_version_agree_and_undo_themselves(
    data: bytes, mask: bytes, offset: int
) -> None:
    place = memoryview(bytearray(offset) + data)[offset:]
    masked = speedups.apply_mask(place, mask)
    assert masked == pure(place, mask) == bytes(b ^ mask[n % 4] for n, b in enumerate(data))
    assert speedups.apply_mask(masked, mask) == pure(masked, mask) == data


def test_where_the_extension_was_built_it_is_used() -> None:
    assert unmask is speedups.apply_mask
