"""`relay load record`: records a stream, so that the phones of a scenario can replay it.

It watches the stream as a lossless viewer and writes the time and the content of each frame.
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
from relay.client.dial import open_stream
from relay.client.errors import Closed
from relay.client.websocket import open_websocket
from relay.errors import RelayError
from relay.load.actors.frames.payloads import TRACE_FORMAT, TraceFrame
from relay.load.actors.network.client import MSGPACK_SUBPROTOCOL, IncomingMessage, LoadClient
from relay.load.actors.network.endpoint import TlsVerification, path_or_default

RECORD_CONNECT_TIMEOUT = 15.0
MAX_RECORDING_BYTES = 2 << 30
"""Maximum size of a recording."""


class RecordFailed(RelayError):
    """The recording could not be made or completed."""


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
        self._write(msgspec.json.encode({"format": TRACE_FORMAT}))

    def receive(self, incoming: IncomingMessage, _size: int) -> None:
        if incoming.type != "video-frame" or incoming.data is None:
            return
        now = trio.current_time()
        if self._first is None:
            self._first = now
        elif incoming.seq > self._seq:
            self.missed += incoming.seq - self._seq - 1
        self._seq = incoming.seq
        data = bytes(incoming.data)
        content = base64.b64encode(data).decode() if self.with_data else None
        self._write(
            msgspec.json.encode(TraceFrame(round(now - self._first, 6), len(data), content))
        )
        self.frames += 1

    def _write(self, line: bytes) -> None:
        if self.file.tell() > MAX_RECORDING_BYTES:
            raise RecordFailed(
                f"the recording is over {MAX_RECORDING_BYTES >> 30} GiB: it ends here"
            )
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
    tls_verification: TlsVerification | None = None,
) -> Recorder:
    """Record for `seconds` or until Ctrl-C. After a `RelayError` the file has what came before."""
    tls = (tls_verification or TlsVerification()).context_for(url)
    failure: RelayError | None = None
    try:
        with (
            trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals,
            path.open("wb") as file,
        ):
            recorder = Recorder(file, with_data)
            recorder.begin()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_stop_at_signal, signals, nursery.cancel_scope)
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


async def _stop_at_signal(signals: AsyncIterator[int], everything: trio.CancelScope) -> None:
    await anext(signals)
    everything.cancel()


async def _watch(
    url: str, stream: str, token: str, recorder: Recorder, tls: ssl.SSLContext | None
) -> None:
    with trio.move_on_after(RECORD_CONNECT_TIMEOUT) as connecting:
        connection, host, resource = await open_stream(url, tls=tls)
        path = path_or_default(resource, phone=False)
        async with open_websocket(
            connection, host, path, required_subprotocol=MSGPACK_SUBPROTOCOL
        ) as socket:
            client = LoadClient(socket, msgpack=True, on_message=recorder.receive)
            await client.request("auth", token=token)
            await client.request(
                "subscribe", streamId=stream, consumes=["video-frame"], policy="lossless"
            )
            connecting.deadline = float("inf")
            while True:
                await client.read()
    raise RecordFailed(f"no answer in {RECORD_CONNECT_TIMEOUT:g} s")
