"""A clip becomes a file while others have their turns."""

from __future__ import annotations

import base64

import pytest
import trio

from relay.clips.capture import PendingClip
from relay.clips.mjpeg_file import clip_file, pictures_in
from relay.hub.frames.frame_budget import FrameBudget
from relay.hub.frames.picture_ring import KeptPicture
from relay.protocol.codec import JSON_CODEC, MSGPACK_CODEC, Codec
from tests.unit.web.pictures.gallery import picture

PICTURES = 300


def as_sent(codec: Codec) -> bytes:
    content = picture(size=60_000)
    if codec is JSON_CODEC:
        return b'"' + base64.b64encode(content) + b'"'
    return b"\xc5" + len(content).to_bytes(2, "big") + content


@pytest.mark.parametrize("codec", [JSON_CODEC, MSGPACK_CODEC])
async def test_others_have_turns_while_a_long_clip_becomes_a_file(codec: Codec) -> None:
    account, data = FrameBudget().account("ann"), as_sent(codec)
    clip, turns = PendingClip(1 << 30), 0
    clip.begin_with(
        KeptPicture(seq, 0, 1_700_000_000_000 + seq, float(seq), data, codec, account)
        for seq in range(PICTURES)
    )

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        await trio.lowlevel.checkpoint()
        before = turns
        pieces = await clip_file(clip)
        during = turns - before
        nursery.cancel_scope.cancel()
    assert len(list(pictures_in(b"".join(pieces)))) == PICTURES
    assert during >= 3
