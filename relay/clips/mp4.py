"""Makes MP4 files of clips, in a worker process: one clip at a time."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import trio
from attrs import define, field

from relay.clips.fair_turns import FairTurns, NoTurn
from relay.clips.made_clips import MadeClip
from relay.clips.mjpeg_file import pictures_in
from relay.clips.mp4_worker import CLIP, NO_LIBRARY, PICTURE, mp4_command
from relay.clips.storage import PictureFile
from relay.errors import RelayError
from relay.renditions.jpeg_header import read_renderable_size

MAX_CLIP_BYTES = 96 << 20
"""Of a clip that is read; `clip_buffer` is usually far less."""
MAX_MP4_BYTES = 64 << 20
MAX_VIDEO_SIDE = 1920
"""Pixels of the video's larger side."""
MP4_TURN_TIMEOUT, MP4_TIMEOUT = 5.0, 20.0
"""Seconds for the turn of a clip, and to make the file: together less than a request may take."""
MAX_WAITING_CLIPS = 4
READ_PIECE_BYTES = 256 * 1024
MP4_END_TIMEOUT = 5.0
"""Seconds for a killed worker to be gone."""


class NoMp4(RelayError):
    """There is no MP4 file of a clip. The text says why."""


class TooBusy(NoMp4):
    """Others are waiting already, or the machine is too slow."""


@define(eq=False)
class Mp4Maker:
    """Makes MP4 files of clips."""

    _command: Sequence[str] | None
    """The command line of a worker; None without PyAV."""
    _turns: FairTurns = field(factory=lambda: FairTurns(MAX_WAITING_CLIPS, MP4_TURN_TIMEOUT))

    @classmethod
    def find(cls) -> Mp4Maker:
        """One that uses PyAV, if that is installed."""
        found = find_spec("av")
        if found is None or found.origin is None:
            return cls(None)
        return cls(mp4_command(str(Path(found.origin).parent.parent)))

    async def make(self, clip: PictureFile, sender: str) -> MadeClip:
        """The MP4 file of a clip, for somebody who has one made at a time; `NoMp4`, `NotStored`."""
        if self._command is None:
            raise NoMp4("This relay makes no MP4 files: it needs the extra relay[mp4]")
        try:
            async with self._turns.turn(sender):
                made = await self._make(clip, self._command)
        except NoTurn:
            raise TooBusy("Other clips are being made; try again in a moment") from None
        return MadeClip(made, await trio.to_thread.run_sync(_etag_of, made))

    async def _make(self, clip: PictureFile, command: Sequence[str]) -> bytes:
        with trio.move_on_after(MP4_TIMEOUT):
            content = await _read_whole(clip)
            # There may be a hundred megabytes to go through.
            request = await trio.to_thread.run_sync(_request_of, content, abandon_on_cancel=True)
            del content
            return await _run(command, request)
        raise TooBusy(f"It was not made within {MP4_TIMEOUT:g} seconds")


def _etag_of(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


async def _read_whole(clip: PictureFile) -> bytes:
    content = bytearray()
    while piece := await clip.read(READ_PIECE_BYTES):
        content += piece
        if len(content) > MAX_CLIP_BYTES:
            raise NoMp4("The clip is too large to make an MP4 file of it")
    return bytes(content)


def _request_of(content: bytes) -> list[bytes]:
    """The pieces of the request to a worker; `NoMp4`."""
    pieces: list[bytes] = []
    size: tuple[int, int] | None = None
    began = count = 0
    for moment, picture in pictures_in(content):
        found = read_renderable_size(picture)
        if found is None:
            continue
        if size is None:
            size, began = found, moment
        pieces += [PICTURE.pack(min(max(0, moment - began), 2**32 - 1), len(picture)), picture]
        count += 1
    if size is None:
        raise NoMp4("The clip has no usual JPEG pictures to make an MP4 file of")
    return [CLIP.pack(count, *fitting(size)), *pieces]


def fitting(size: tuple[int, int]) -> tuple[int, int]:
    """The size of a video of such pictures: even, and no larger than `MAX_VIDEO_SIDE`."""
    scale = min(1.0, MAX_VIDEO_SIDE / max(size))
    width, height = (max(2, round(side * scale / 2) * 2) for side in size)
    return width, height


async def _run(command: Sequence[str], request: Sequence[bytes]) -> bytes:
    """The answer of a worker; `NoMp4`."""
    environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    process = await trio.lowlevel.open_process(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
        env={**environment, "LC_ALL": "C"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    answer = bytearray()
    try:
        with suppress(trio.BrokenResourceError):  # how it ended says why
            for piece in request:
                await process.stdin.send_all(piece)
        await process.stdin.aclose()
        while more := await process.stdout.receive_some():
            answer += more
            if len(answer) > MAX_MP4_BYTES:
                raise NoMp4("The MP4 file would be too large")
        status = await process.wait()
    finally:
        process.kill()
        with trio.move_on_after(MP4_END_TIMEOUT, shield=True):
            await process.stdin.aclose()
            await process.stdout.aclose()
            await process.wait()
    if status == NO_LIBRARY:
        raise NoMp4("This relay makes no MP4 files: its PyAV cannot encode H.264")
    if status or answer[4:8] != b"ftyp":
        raise NoMp4("The pictures of the clip cannot be made an MP4 file of")
    return bytes(answer)
