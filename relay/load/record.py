"""Turns a real session into a recording that phones of a scenario can replay. Floor 6.

It watches a stream as a viewer that must miss nothing, and writes each frame's time and content.
"""

from __future__ import annotations

import base64
import signal
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

import msgspec
import trio
from attrs import define

from relay.client import ServerError
from relay.errors import RelayError
from relay.load.payloads import TRACE, TraceFrame
from relay.load.peer import MSGPACK, Heard, Peer
from relay.load.socket import open_lean
from relay.load.stage import is_encrypted
from relay.load.trust import Trust
from relay.transport.dial import Closed, open_stream

CONNECT_SECONDS = 15.0
MOST_BYTES = 2 << 30
"""A recording is no larger."""


class RecordFailed(RelayError):
    """A recording that could not be made, or not to its end."""


@define(eq=False)
class Recorder:
    """Writes the frames of a stream into a file."""

    file: BinaryIO
    with_data: bool = True
    frames: int = 0
    missed: int = 0
    _first: float | None = None
    _seq: int = 0

    def begin(self) -> None:
        self._write(msgspec.json.encode({"format": TRACE}))

    def hear(self, heard: Heard, _size: int) -> None:
        if heard.type != "video-frame" or heard.data is None:
            return
        now = trio.current_time()
        if self._first is None:
            self._first = now
        elif heard.seq > self._seq:
            self.missed += heard.seq - self._seq - 1
        self._seq = heard.seq
        data = bytes(heard.data)
        content = base64.b64encode(data).decode() if self.with_data else None
        self._write(
            msgspec.json.encode(TraceFrame(round(now - self._first, 6), len(data), content))
        )
        self.frames += 1

    def _write(self, line: bytes) -> None:
        if self.file.tell() > MOST_BYTES:
            raise RecordFailed(f"the recording is over {MOST_BYTES >> 30} GiB: it ends here")
        try:
            self.file.write(line + b"\n")
        except OSError as error:
            raise RecordFailed(f"cannot write the recording: {error.strerror}") from None


async def record(
    url: str,
    stream: str,
    token: str,
    path: Path,
    *,
    seconds: float | None,
    with_data: bool,
    trust: Trust | None = None,
) -> Recorder:
    """Record until the time is over or Ctrl-C; `RelayError`. What was recorded is in the file."""
    tls = (trust or Trust()).context() if is_encrypted(url) else None
    failure: RelayError | None = None
    try:
        with (
            trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals,
            path.open("wb") as file,
        ):
            recorder = Recorder(file, with_data)
            recorder.begin()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_leave_at_signal, signals, nursery.cancel_scope)
                try:
                    with trio.move_on_after(float("inf") if seconds is None else seconds):
                        await _watch(url, stream, token, recorder, tls)
                except (Closed, ServerError) as problem:
                    failure = RecordFailed(f"after {recorder.frames} frames: {problem}")
                except RelayError as problem:
                    failure = problem
                nursery.cancel_scope.cancel()
    except OSError as error:
        raise RecordFailed(f"cannot write {path}: {error.strerror}") from None
    if failure is not None:
        raise failure
    return recorder


async def _leave_at_signal(signals: AsyncIterator[int], everything: trio.CancelScope) -> None:
    await anext(signals)
    everything.cancel()


async def _watch(
    url: str, stream: str, token: str, recorder: Recorder, tls: ssl.SSLContext | None
) -> None:
    with trio.move_on_after(CONNECT_SECONDS) as connecting:
        connection, host, resource = await open_stream(url, tls=tls)
        path = "/streams/subscribe" if resource == "/" else resource
        async with open_lean(connection, host, path, MSGPACK) as socket:
            peer = Peer(socket, msgpack=True, hears=recorder.hear)
            await peer.ask("auth", token=token)
            await peer.ask(
                "subscribe", streamId=stream, consumes=["video-frame"], policy="lossless"
            )
            connecting.deadline = float("inf")
            while True:
                await peer.read()
    raise RecordFailed(f"no answer in {CONNECT_SECONDS:g} s")


__all__ = ["RecordFailed", "Recorder", "record"]
