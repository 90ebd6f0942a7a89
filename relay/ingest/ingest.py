"""Publishes a source as a stream: reads it while somebody watches, and comes back by itself."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Literal, NoReturn, Protocol, TypeVar

import trio
from attrs import define, field, frozen

from relay.client import (
    Demand,
    Layer,
    PicturePlan,
    Problem,
    Registered,
    RelayClient,
    StateChange,
    TokenSource,
    open_relay_client,
)
from relay.client.state.event_queue import ClientState
from relay.concurrency.backoff import Backoff
from relay.errors import RelayError
from relay.ingest.reader_process import CopiedFrame, SourceEnded, SourceFailed, open_reader
from relay.ingest.source import IngestSource
from relay.ingest.wire import ReadRequest, SourceInfo, WantedPicture
from relay.protocol.messages import now_ms

T = TypeVar("T")
Codec = Literal["jpeg", "h264", "copy"]

LINGER = 5.0
"""Seconds for which a source is read on when the last viewer has left: they may come back."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds between attempts to read a source."""
SOURCE_STABLE_AFTER = 10.0
"""Seconds for which a source has to be open to be tried again soon when it fails."""
ROOM_INTERVAL = 0.02
"""Seconds between looks at whether the link has room."""
FULL_LAYER = "full"
"""The id of the largest layer; those below have their widths."""


class ReadsSource(Protocol):
    """A reader of one source; see `SourceReader`."""

    async def open(self, request: ReadRequest) -> SourceInfo: ...

    async def take(self, pictures: list[WantedPicture]) -> list[bytes]: ...

    async def next_frame(self) -> CopiedFrame: ...


class PublishedStream(Protocol):
    """The stream that is published; see `Publication`."""

    @property
    def registered(self) -> bool: ...

    @property
    def is_wanted(self) -> bool: ...

    async def wanted(self) -> None: ...

    def next(self, *, fps: float, width: int | None = None) -> PicturePlan | None: ...

    def send_frame(
        self,
        data: bytes,
        *,
        timestamp: float | None = None,
        keyframe: bool | None = None,
        discardable: bool | None = None,
        layer: str | None = None,
    ) -> bool: ...


OpenReader = Callable[[], AbstractAsyncContextManager[ReadsSource]]


class CodecChanged(RelayError):
    """The source has another codec than viewers were told."""


@frozen
class IngestOptions:
    """What to publish, and how."""

    source: IngestSource
    stream_id: str
    codec: Codec = "jpeg"
    quality: float | None = None
    """The best quality of JPEGs, from 0 to 1; None: as good as the link carries."""
    max_width: int | None = None
    fps: float = 15.0
    layers: tuple[int, ...] = ()
    """Widths of smaller pictures, the smallest first."""
    loop: bool = False

    @property
    def request(self) -> ReadRequest:
        source = self.source
        return ReadRequest(
            *(source.address, source.demuxer, source.options),
            copies=self.codec != "jpeg",
            is_file=source.kind == "file",
            loops=self.loop,
        )

    @property
    def published_layers(self) -> list[Layer]:
        if not self.layers:
            return []
        smaller = [Layer(id=str(width), width=width) for width in self.layers]
        return [*smaller, Layer(id=FULL_LAYER, width=self.max_width)]


@define(eq=False)
class Ingest:
    """Publishes one source. It tells what happens in lines for people."""

    _options: IngestOptions
    _say: Callable[[str], object]
    _open_reader: OpenReader = open_reader
    _changed: trio.Event = field(factory=trio.Event, init=False)
    """Set, and replaced, when the relay has told something."""
    _codec: str | None = field(default=None, init=False)
    """The codec string that viewers are told; None for JPEG."""
    _opened_at: float = field(default=math.inf, init=False)
    """When the source was opened that is read now."""
    _failing: str | None = field(default=None, init=False)
    """Why the source could not be read, as it was last told."""

    async def run(self, url: str, token: TokenSource) -> None:
        """Publish until a file has ended; raises `ClientClosed` and `ServerError` when it is of no
        use to go on, `SourceFailed` for a file that cannot be read, and `DialFailed` for an invalid
        URL."""
        if self._options.codec != "jpeg":
            await self._learn_codec()
        async with open_relay_client(url, token) as client, trio.open_nursery() as nursery:
            nursery.start_soon(self._follow, client)
            while True:
                metadata = {"mimeType": "image/jpeg"}
                if self._codec is not None:
                    metadata = {"codec": self._codec}
                publication = client.publish(
                    self._options.stream_id,
                    metadata=metadata,
                    layers=self._options.published_layers,
                )
                try:
                    await self.publish(publication)
                    break
                except CodecChanged:
                    self._say(f"{self._options.source.shown} has another codec now")
                    publication.stop()
            nursery.cancel_scope.cancel()

    async def publish(self, publication: PublishedStream) -> None:
        """Read the source whenever somebody watches, until it has ended; `CodecChanged`."""
        while True:
            await publication.wanted()
            self._say(f"reading {self._options.source.shown}")
            outcome: SourceEnded | CodecChanged | None = None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stop_when_unwatched, publication, nursery.cancel_scope)
                outcome = await self._retry(partial(self._read, publication))
                nursery.cancel_scope.cancel()
            match outcome:
                case None:
                    self._say("nobody is watching")
                case SourceEnded():
                    self._say(f"{self._options.source.shown} has ended")
                    return
                case CodecChanged():
                    raise outcome

    async def _follow(self, client: RelayClient) -> None:
        """Tell what happens to the connection; raises `ClientClosed`."""
        async for event in client:
            match event:
                case Registered(stream_id=stream_id):
                    self._say(f"publishing {stream_id}")
                case StateChange(state=ClientState.WAITING, error=error, retry_in=seconds):
                    self._say(f"the relay is away ({error}); again in {seconds:.0f} s")
                case Problem(code=code, message=message):
                    self._say(f"{code}: {message}")
                case Demand():
                    pass
            self._note_change()

    def _note_change(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def _stop_when_unwatched(
        self, publication: PublishedStream, reading: trio.CancelScope
    ) -> None:
        while True:
            if is_watched(publication):
                await self._changed.wait()
                continue
            with trio.move_on_after(LINGER) as lingering:
                while not is_watched(publication):
                    await self._changed.wait()
            if lingering.cancelled_caught:
                reading.cancel()
                return

    # -- the source

    async def _learn_codec(self) -> None:
        """Read the source once, until it tells its codec: viewers are told it with the stream."""
        self._codec = (await self._retry(self._look)).codec_string

    async def _look(self) -> SourceInfo:
        async with self._open_reader() as reader:
            return await reader.open(self._options.request)

    async def _read(self, publication: PublishedStream) -> SourceEnded | CodecChanged:
        async with self._open_reader() as reader:
            info = await reader.open(self._options.request)
            self._opened_at = trio.current_time()
            if self._failing is not None:
                self._say(f"{self._options.source.shown} is back")
                self._failing = None
            if info.codec_string != self._codec:
                self._codec = info.codec_string
                return CodecChanged()
            try:
                if self._options.codec == "jpeg":
                    await self._send_pictures(reader, info, publication)
                await self._send_frames(reader, info, publication)
            except SourceEnded as ended:
                return ended

    async def _retry(self, work: Callable[[], Awaitable[T]]) -> T:
        """Try until it works; `SourceFailed` for a file."""
        backoff = Backoff(FIRST_PAUSE, LONGEST_PAUSE)
        while True:
            self._opened_at = math.inf
            try:
                return await work()
            except SourceFailed as error:
                reason = self._options.source.explain(str(error))
            if self._options.source.kind == "file":
                raise SourceFailed(f"cannot read {self._options.source.shown}: {reason}")
            if trio.current_time() >= self._opened_at + SOURCE_STABLE_AFTER:
                backoff.reset()
            pause = backoff.next()
            if reason != self._failing or pause < LONGEST_PAUSE:
                self._say(
                    f"cannot read {self._options.source.shown}: {reason}; again in {pause:.0f} s"
                )
            self._failing = reason
            await trio.sleep(pause)

    async def _send_pictures(
        self, reader: ReadsSource, info: SourceInfo, publication: PublishedStream
    ) -> NoReturn:
        """Send a picture whenever one is due and the link has room for it."""
        options = self._options
        width = min(info.width or 1280, options.max_width or 1 << 16)
        due = trio.current_time()
        while True:
            await trio.sleep_until(due)
            plan = publication.next(fps=options.fps, width=width)
            if plan is None:
                due = trio.current_time() + ROOM_INTERVAL
                continue
            wanted = [self._limited(each.width, each.quality) for each in plan.pictures]
            pictures = await reader.take(wanted)
            timestamp = now_ms()
            for planned, data in zip(plan.pictures, pictures, strict=True):
                publication.send_frame(data, layer=planned.layer, timestamp=timestamp)
            # No bursts after a pause.
            due = max(due + 1 / options.fps, trio.current_time() - 1 / options.fps)

    def _limited(self, width: int, quality: float) -> WantedPicture:
        best = self._options.quality
        if best is None:
            return WantedPicture(width, quality, may_copy=True)
        return WantedPicture(width, min(best, quality))

    async def _send_frames(
        self, reader: ReadsSource, info: SourceInfo, publication: PublishedStream
    ) -> NoReturn:
        """Send frames as they come; the client leaves out those that have no room."""
        while True:
            frame = await reader.next_frame()
            if info.codec == "h264":
                publication.send_frame(
                    frame.data, keyframe=frame.keyframe, discardable=frame.discardable or None
                )
            else:
                publication.send_frame(frame.data)


def is_watched(publication: PublishedStream) -> bool:
    """Whether somebody waits for frames, as far as the relay has told."""
    return publication.registered and publication.is_wanted
