"""Cameras and films whose pictures come to viewers as JPEG."""

from __future__ import annotations

import base64
import ssl
from pathlib import Path

import pytest
import trio
import trustme

from relay.renditions.jpeg_header import Size, read_size
from tests.integration.ingest.cameras import (
    HEIGHT,
    WIDTH,
    Serve,
    make_film,
    make_jpegs,
    mjpeg,
    open_camera,
    read_head,
)
from tests.integration.ingest.conftest import StartIngest
from tests.integration.peers import Peer, login
from tests.integration.relay_process import RelayProcess, start_relay, until


async def next_picture(viewer: Peer) -> bytes:
    return base64.b64decode((await viewer.receive_type("video-frame"))["data"])


async def until_size(viewer: Peer, size: Size) -> bytes:
    """The first picture of this size: pictures grow as the link turns out to be fast."""
    while True:
        picture = await next_picture(viewer)
        if read_size(picture) == size:
            return picture


async def test_a_camera_is_read_while_somebody_watches_and_only_then(
    relay: RelayProcess, play: StartIngest, ann: str
) -> None:
    async with (
        open_camera(mjpeg(make_jpegs())) as camera,
        play(f"http://127.0.0.1:{camera.port}/video.mjpg") as played,
    ):
        await played.until_said(f"publishing {played.stream_id}")
        assert camera.connections == 0
        async with login(relay, ann) as viewer:
            await viewer.subscribe(played.stream_id)
            await next_picture(viewer)
            assert (camera.connections, camera.open) == (1, 1)
        await played.until_said("nobody is watching")
        await until(lambda: camera.open == 0)
        async with login(relay, ann) as viewer:
            await viewer.subscribe(played.stream_id)
            await until(lambda: camera.open == 1)
            assert camera.connections == 2


async def test_where_the_link_carries_them_pictures_of_a_camera_come_as_they_are(
    relay: RelayProcess, play: StartIngest, ann: str
) -> None:
    jpegs = make_jpegs()
    async with (
        open_camera(mjpeg(jpegs)) as camera,
        play(f"http://127.0.0.1:{camera.port}/") as played,
        login(relay, ann) as viewer,
    ):
        await viewer.subscribe(played.stream_id)
        with trio.fail_after(20):
            while await next_picture(viewer) not in jpegs:
                pass


async def test_the_best_quality_and_the_largest_width_can_be_chosen(
    relay: RelayProcess, play: StartIngest, ann: str
) -> None:
    jpegs = make_jpegs()
    async with (
        open_camera(mjpeg(jpegs)) as camera,
        play(f"http://127.0.0.1:{camera.port}/", quality=0.3, max_width=160) as played,
        login(relay, ann) as viewer,
    ):
        await viewer.subscribe(played.stream_id)
        for _ in range(5):
            assert read_size(await next_picture(viewer)) == (160, 120)


async def test_viewers_get_the_layers_that_they_can_use(
    relay: RelayProcess, play: StartIngest, ann: str
) -> None:
    async with (
        open_camera(mjpeg(make_jpegs())) as camera,
        play(f"http://127.0.0.1:{camera.port}/", layers=(160,)) as played,
        login(relay, ann) as small,
        login(relay, ann) as large,
    ):
        await small.subscribe(played.stream_id, maxWidth=160)
        await large.subscribe(played.stream_id)
        await until_size(large, (WIDTH, HEIGHT))
        frame = await small.receive_type("video-frame")
        assert frame["layer"] == "160"
        assert read_size(base64.b64decode(frame["data"])) == (160, 120)


async def test_a_film_comes_at_its_own_pace_and_ends(
    relay: RelayProcess, play: StartIngest, ann: str, tmp_path: Path
) -> None:
    film = make_film(tmp_path / "film.mp4", pictures=25)
    async with play(f"file:{film}") as played, login(relay, ann) as viewer:
        await viewer.subscribe(played.stream_id)
        began = trio.current_time()
        await until_size(viewer, (WIDTH, HEIGHT))
        await played.ended.wait()
        assert trio.current_time() - began > 0.9  # of a film of one second
        assert played.said[-1] == "film.mp4 has ended"


async def test_a_film_begins_again_if_it_shall(
    relay: RelayProcess, play: StartIngest, ann: str, tmp_path: Path
) -> None:
    film = make_film(tmp_path / "film.mp4", pictures=3)
    async with play(f"file:{film}", loop=True) as played, login(relay, ann) as viewer:
        await viewer.subscribe(played.stream_id)
        for _ in range(10):
            await next_picture(viewer)
        assert not played.ended.is_set()


async def test_ingest_comes_back_when_the_camera_does(
    relay: RelayProcess, play: StartIngest, ann: str
) -> None:
    async with open_camera(mjpeg(make_jpegs())) as camera:
        camera.stop()
        async with (
            play(f"http://user:s3cret@127.0.0.1:{camera.port}/") as played,
            login(relay, ann) as viewer,
        ):
            await viewer.subscribe(played.stream_id)
            await played.until_said("Connection refused; again in")
            await camera.start()
            await next_picture(viewer)
            camera.stop()
            await until(lambda: sum("cannot read" in each for each in played.said) > 1)
            await camera.start()
            await until(lambda: camera.open == 1)
            viewer.passed_over.clear()
            await next_picture(viewer)
            assert not any("s3cret" in each for each in played.said)


async def test_ingest_comes_back_when_the_relay_does(
    database_url: str, relay: RelayProcess, play: StartIngest, ann: str
) -> None:
    async with open_camera(mjpeg(make_jpegs())) as camera:
        with start_relay(database_url=database_url) as first:
            bind = first.url.removeprefix("http://")
            async with play(f"http://127.0.0.1:{camera.port}/", url=first.url) as played:
                await played.until_said("publishing")
                first.end()
                await played.until_said("the relay is away")
                with start_relay(database_url=database_url, bind=bind) as second:
                    async with login(second, ann) as viewer:
                        await viewer.subscribe(played.stream_id)
                        await next_picture(viewer)


def garbage(data: bytes) -> Serve:
    async def serve(stream: trio.abc.Stream) -> None:
        await read_head(stream)
        await stream.send_all(data)

    return serve


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=b\r\n\r\n"
PART = b"--b\r\nContent-Type: image/jpeg\r\n"


GARBAGE = [
    b"",
    b"\0\xff garbage " * 1000,
    b"HTTP/1.1 404 Not Found\r\n\r\n",
    HEAD + PART + b"Content-Length: 2000000000\r\n\r\n" + b"\xff\xd8" + b"x" * 100_000,
    HEAD + 200 * (PART + b"Content-Length: 5\r\n\r\n\xff\xd8\xff\xc0x\r\n"),
    b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n",
]


async def test_garbage_from_a_camera_is_survived(
    relay: RelayProcess, play: StartIngest, ann: str
) -> None:
    async with (
        open_camera(garbage(GARBAGE[0])) as camera,
        play(f"http://127.0.0.1:{camera.port}/") as played,
        login(relay, ann) as viewer,
    ):
        await viewer.subscribe(played.stream_id)
        for number, data in enumerate(GARBAGE, 1):
            camera.serve = garbage(data)
            await until(lambda number=number: camera.connections > number)  # type: ignore[misc]
        camera.serve = mjpeg(make_jpegs())
        await next_picture(viewer)


async def test_the_certificate_of_a_camera_is_checked(
    relay: RelayProcess,
    play: StartIngest,
    ann: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authority, plain = trustme.CA(), mjpeg(make_jpegs())
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def serve(stream: trio.abc.HalfCloseableStream) -> None:
        await plain(trio.SSLStream(stream, context, server_side=True))

    async def comes(url: str, **options: bool) -> None:
        async with play(url, **options) as played, login(relay, ann) as viewer:
            await viewer.subscribe(played.stream_id)
            await next_picture(viewer)

    async with open_camera(serve) as camera:
        url = f"https://127.0.0.1:{camera.port}/"
        async with play(url) as played, login(relay, ann) as viewer:
            await viewer.subscribe(played.stream_id)
            await played.until_said("no valid certificate")
        await comes(url, insecure_tls=True)
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        await comes(url)
