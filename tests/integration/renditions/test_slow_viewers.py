"""A real relay makes smaller pictures of a phone's, in its worker process."""

from __future__ import annotations

import os
import signal
from typing import Any

import psutil
import simplejpeg
import trio

from tests.integration.accounts import Accounts
from tests.integration.peers import Peer, login, new_stream_id
from tests.integration.relay_process import RelayProcess, start_relay
from tests.integration.renditions.test_renderer import picture

FPS = 10
PICTURE = picture(1280, 720)


def workers(relay: RelayProcess) -> list[psutil.Process]:
    """The processes below relay that make pictures."""
    below = psutil.Process(relay.pid).children(recursive=True)
    return [each for each in below if any("renditions" in part for part in each.cmdline())]


async def film(phone: Peer) -> None:
    while True:
        await phone.send_frame(PICTURE)
        await trio.sleep(1 / FPS)


async def next_rendition(viewer: Peer) -> dict[str, Any]:
    while True:
        frame = await viewer.receive_type("video-frame")
        if frame.get("layer") is not None:
            return frame


async def test_a_viewer_that_asks_for_small_pictures_gets_them(
    relay: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session(), new_stream_id()
    async with (
        login(relay, token, msgpack=True) as phone,
        login(relay, token, msgpack=True) as viewer,
        login(relay, token, msgpack=True) as other,
        trio.open_nursery() as nursery,
    ):
        await phone.register(stream_id)
        await viewer.subscribe(stream_id, maxWidth=320)
        await other.subscribe(stream_id)
        nursery.start_soon(film, phone)
        frame = await next_rendition(viewer)
        assert frame["layer"] == "320"
        assert simplejpeg.decode_jpeg_header(frame["data"])[:2] == (180, 320)
        original = await other.receive_type("video-frame")
        assert original["data"] == PICTURE
        assert "layer" not in original

        os.kill(workers(relay)[0].pid, signal.SIGKILL)
        seq = original["seq"]
        for _ in range(3 * FPS):
            seq += 1
            assert (await other.receive_type("video-frame"))["seq"] == seq
        while (await viewer.receive_type("video-frame"))["seq"] <= seq:
            pass  # a picture is missing, or some come as they are
        nursery.cancel_scope.cancel()
    health = (await relay.get("/ready")).json()
    assert health["services"]["renditions"] == "running"


async def test_a_relay_without_renditions_sends_pictures_as_they_are(
    database_url: str, accounts: Accounts
) -> None:
    token, stream_id = accounts.session(), new_stream_id()
    with start_relay("--renditions", "off", database_url=database_url) as relay:
        async with (
            login(relay, token, msgpack=True) as phone,
            login(relay, token, msgpack=True) as viewer,
            trio.open_nursery() as nursery,
        ):
            await phone.register(stream_id)
            await viewer.subscribe(stream_id, maxWidth=320)
            nursery.start_soon(film, phone)
            for _ in range(2 * FPS):
                assert (await viewer.receive_type("video-frame"))["data"] == PICTURE
            assert workers(relay) == []
            nursery.cancel_scope.cancel()
