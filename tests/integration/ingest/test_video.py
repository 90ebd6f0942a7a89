"""H.264 that is passed on as it comes."""

from __future__ import annotations

import base64
from pathlib import Path

import av
import pytest
import trio

from relay.ingest.reader_process import SourceFailed
from tests.integration.ingest.cameras import WIDTH, make_film, make_h264, open_camera, rtsp
from tests.integration.ingest.conftest import StartIngest
from tests.integration.peers import login
from tests.integration.relay_process import RelayProcess, until


def decode(frames: list[bytes]) -> list[int]:
    """The widths of the pictures that a decoder makes, which is told nothing else."""
    decoder = av.CodecContext.create("h264", "r")
    packets = [*map(av.Packet, frames), None]
    return [frame.width for packet in packets for frame in decoder.decode(packet)]


async def test_frames_of_a_camera_come_as_they_are_with_keyframes_marked(
    relay: RelayProcess, play: StartIngest, ann: str
) -> None:
    async with (
        open_camera(rtsp(make_h264(), password="s3cret")) as camera,
        play(f"rtsp://user:s3cret@127.0.0.1:{camera.port}/main", codec="h264") as played,
        login(relay, ann) as viewer,
    ):
        await played.until_said("publishing")
        await until(lambda: camera.open == 0)  # it was read to learn the codec only
        subscribed = await viewer.ask(
            {
                "type": "subscribe",
                "streamId": played.stream_id,
                "consumes": ["video-frame"],
                "policy": "lossless",
            }
        )
        assert subscribed["metadata"] == {"codec": "avc1.42C00D"}
        frames = [await viewer.receive_type("video-frame") for _ in range(12)]
        assert frames[0]["keyframe"] is True
        assert {each["keyframe"] for each in frames} == {True, False}
        assert decode([base64.b64decode(each["data"]) for each in frames]) == [WIDTH] * 12
        await until(lambda: camera.open == 1)


async def test_a_film_is_passed_on_without_encoding_it_again(
    relay: RelayProcess, play: StartIngest, ann: str, tmp_path: Path
) -> None:
    film = make_film(tmp_path / "film.mp4", pictures=10)
    async with (
        play(f"file:{film}", codec="copy", loop=True) as played,
        login(relay, ann) as viewer,
    ):
        await played.until_said("publishing")
        await viewer.subscribe(played.stream_id, policy="lossless")
        frames = [await viewer.receive_type("video-frame") for _ in range(15)]
        assert decode([base64.b64decode(each["data"]) for each in frames]) == [WIDTH] * 15


async def test_what_browsers_cannot_decode_is_not_passed_on(
    relay: RelayProcess, play: StartIngest, tmp_path: Path
) -> None:
    film = make_film(tmp_path / "film.mkv", "mpeg4", pictures=10)
    text = "cannot read film.mkv: it sends mpeg4, which is not passed on; use --codec jpeg"
    with pytest.RaisesGroup(pytest.RaisesExc(SourceFailed, match=text), flatten_subgroups=True):
        async with play(f"file:{film}", codec="h264"):
            await trio.sleep_forever()
