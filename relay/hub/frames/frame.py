"""Accepted frames, encoded once per encoding, however many consumers watch."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import accumulate, count
from typing import Self

import trio
from attrs import define, field, frozen
from msgspec import Raw

from relay.concurrency.time_slice import TimeSlice
from relay.hub.frames.frame_budget import FRAME_BYTES, FrameAccount, FrameBudget
from relay.hub.frames.jpeg_parts import JPEG_BASE64_BEGINNING, JPEG_BEGINNING, JpegParts
from relay.hub.layers.layer_set import PictureLayer
from relay.hub.peer import ConsumingPeer
from relay.protocol.base64_text import looks_standard
from relay.protocol.codec import Codec
from relay.protocol.messages import (
    NO_METADATA,
    CarriedFrame,
    MalformedFrame,
    VideoFrame,
    VideoFrameEvent,
)
from relay.transport import wire
from relay.transport.link import Buffer
from relay.transport.parts import MAX_SHORT_BYTES, parts_of

MAX_SHORT_CONTENT_BYTES = MAX_SHORT_BYTES * 3 // 4
"""Bytes of data and metadata that make a short message, also when data becomes base64."""
MIN_BYTES_IN_STEPS = 1 << 20
"""Frames with more data are encoded in steps."""
MAX_BURST_BYTES = 64 * 1024
"""The most bytes of frames that are written together because they arrived together."""

FrameForm = Codec | JpegParts
"""What a viewer gets its frames as: messages in an encoding, or parts of an HTTP response."""

_tokens = count(1, 2)
"""Of probes behind frames. Those of pings ahead of frames are even."""


@define(eq=False)
class Frame:
    """One frame of one stream."""

    stream_id: str
    seq: int
    received_at: int
    """The relay's clock, ms since the Unix epoch."""
    accepted_at: float
    """The same moment by Trio's clock."""
    message: VideoFrame = field(repr=False)
    codec: Codec = field(repr=False)
    """The encoding in which it arrived."""
    account: FrameAccount = field(factory=lambda: FrameAccount(FrameBudget()), repr=False)
    """Counts its bytes from `keep` on, as long as anybody holds it."""
    missing_reference: bool = False
    """Whether it builds on a frame that never arrived."""
    layer: PictureLayer | None = None
    """Which layer of the picture it is; None in a stream without layers."""
    size: int = field(init=False)
    """The bytes of its content, as it came."""
    is_large: bool = field(init=False)
    """Whether encoding it takes so long that others need a turn meanwhile."""
    is_long: bool = field(init=False)
    """Whether it goes in parts where that is asked for."""
    total_size: int = field(init=False, repr=False)
    """The bytes that it takes, in all the forms that it has by now."""
    _is_kept: bool = field(default=False, init=False, repr=False)
    """Whether its account counts these bytes, as long as it lives."""
    _encoded: dict[FrameForm, Buffer | None] = field(factory=dict, repr=False)
    _parts: dict[FrameForm, EncodedBurst | None] | None = field(default=None, repr=False)
    _probed: dict[FrameForm, Buffer] | None = field(default=None, init=False, repr=False)
    """What is encoded, with a probe behind it."""
    _token: int = field(default=0, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        data = len(self.message.data)
        self.size = data + len(self.message.metadata)
        self.total_size = FRAME_BYTES + self.size
        self.is_large = data > MIN_BYTES_IN_STEPS
        self.is_long = self.size > MAX_SHORT_CONTENT_BYTES

    def __del__(self) -> None:
        if self._is_kept:
            self.account.count(-self.total_size)

    @classmethod
    def carried(
        cls,
        event: CarriedFrame,
        codec: Codec,
        buffer: bytearray,
        account: FrameAccount,
        layer: PictureLayer | None,
    ) -> Self:
        """A frame that another node has accepted, as that sends it to viewers.

        `buffer` is the message, which goes out as it is, behind `MAX_HEADER_BYTES` of room.
        """
        kind = VideoFrame
        if not codec.binary and not looks_standard(event.data, bytes(buffer)):
            kind = MalformedFrame
        message = kind(
            data=event.data,
            timestamp=event.timestamp,
            keyframe=event.keyframe,
            discardable=event.discardable,
            layer=event.layer,
            metadata=event.metadata,
        )
        now = trio.current_time()
        frame = cls(
            *(event.stream_id, event.seq, event.received_at, now, message, codec, account),
            layer=layer,
        )
        frame._keep_encoded(codec, buffer)
        return frame

    @property
    def token(self) -> int:
        """Of the probe behind it."""
        if not self._token:
            self._token = next(_tokens)
        return self._token

    @property
    def is_delta(self) -> bool:
        """Whether it builds on the frame before."""
        return self.message.keyframe is False

    @property
    def is_discardable(self) -> bool:
        """Whether it may be left out alone: it is a delta on which nothing builds."""
        return self.message.discardable is True and self.message.keyframe is False

    @property
    def looks_like_jpeg(self) -> bool:
        """Whether its data begins as a JPEG picture does."""
        head = bytes(memoryview(self.message.data)[:8])  # with what the encoding puts before it
        return (JPEG_BEGINNING if self.codec.binary else JPEG_BASE64_BEGINNING) in head

    @property
    def keyframe(self) -> bool | None:
        """Whether this is a keyframe; None if each frame can be decoded alone."""
        return self.message.keyframe

    def encoded(self, codec: FrameForm) -> Buffer | None:
        """The `video-frame` message, as one WebSocket frame if it is not long, or the part of an
        HTTP response.

        None when its data cannot be put into this form: it came as JSON and is not base64, or is
        not the picture that it has to be.
        """
        if codec in self._encoded:
            return self._encoded[codec]
        if isinstance(codec, JpegParts):
            return self._keep_part(codec, self._content())
        buffer = self._encode(codec)
        if buffer is None:
            self._encoded[codec] = None
            return None
        return self._keep_encoded(codec, buffer)

    def _content(self) -> bytes | None:
        """Its data as bytes; None if it is not base64."""
        if isinstance(self.message, MalformedFrame):
            return None
        return self.codec.unpack(self.message.data)

    def _keep_part(self, form: JpegParts, content: bytes | None) -> Buffer | None:
        part = self._encoded[form] = form.enclose(content, self.seq, self.received_at)
        if part is not None:
            self._grow(len(part))
        return part

    def probed(self, codec: FrameForm) -> Buffer:
        """What `encoded` returned, with a probe behind it."""
        probed = None if self._probed is None else self._probed.get(codec)
        if probed is None:
            encoded = self._encoded[codec]
            assert encoded is not None
            probed = b"".join((encoded, wire.probe(self.token)))
            self._encoded[codec] = self._keep_probed(codec, probed)
        return probed

    def _keep_encoded(self, codec: Codec, buffer: bytearray) -> Buffer:
        opcode = wire.BINARY if codec.binary else wire.TEXT
        encoded: Buffer
        if len(buffer) <= wire.MAX_WHOLE_BYTES:
            encoded = wire.message_around(opcode, buffer)
        else:  # it is copied anyway, and once more would take long
            payload = memoryview(buffer)[wire.MAX_HEADER_BYTES :]
            probed = wire.message(opcode, payload, wire.probe(self.token))
            encoded = self._keep_probed(codec, probed)
        self._encoded[codec] = encoded
        self._grow(len(encoded))
        return encoded

    def _keep_probed(self, codec: FrameForm, probed: Buffer) -> Buffer:
        """Keep it; returns the part of it that is before the probe."""
        if self._probed is None:
            self._probed = {}
        self._probed[codec] = probed
        return memoryview(probed)[: -wire.PROBE_BYTES]

    def is_encoded(self, codec: FrameForm, *, in_parts: bool) -> bool:
        """Whether `encoded`, or `parts`, has nothing left to do."""
        if codec is not self.codec and isinstance(self.message, MalformedFrame):
            return True  # there is none
        return codec in ((self._parts or {}) if in_parts and self.is_long else self._encoded)

    async def encode(self, codec: FrameForm, *, in_parts: bool) -> None:
        """Do what `encoded` or `parts` would do, once for all who want it, while others have a turn
        now and then.

        One frame of an owner at a time: the bytes that this takes meanwhile are not counted.
        """
        account = self.account
        if account.encoding is None:
            account.encoding = trio.Lock()
        async with account.encoding:
            if not self.is_encoded(codec, in_parts=in_parts):
                time_slice = TimeSlice()
                for _ in self.encode_in_steps(codec, in_parts=in_parts):
                    await time_slice.pause_if_over()

    def encode_in_steps(self, codec: FrameForm, *, in_parts: bool) -> Generator[None]:
        """Do in steps what `encoded` or `parts` would do, which then find it done."""
        if isinstance(codec, JpegParts):
            content = yield from self.codec.unpack_in_steps(self.message.data)
            yield
            self._keep_part(codec, content)
            return
        data = None
        if codec is not self.codec:
            content = yield from self.codec.unpack_in_steps(self.message.data)
            if content is None:
                self._encoded[codec] = None
                self._parts = {**(self._parts or {}), codec: None}
                return
            yield
            data = yield from codec.pack_in_steps(content)
            yield
        buffer = self._encode(codec, data)
        yield
        if buffer is None:
            return
        if not in_parts:
            self._keep_encoded(codec, buffer)
            return
        payload = memoryview(buffer)[wire.MAX_HEADER_BYTES :]
        pieces = []
        for part in parts_of(codec, payload, self.stream_id):
            pieces.append(part)
            yield
        self._keep_parts(codec, pieces)

    def keep(self) -> None:
        """Count its bytes from now on. Call this before others have a turn while it is held."""
        if not self._is_kept:
            self._is_kept = True
            self.account.count(self.total_size)

    def keep_unencoded(self) -> None:
        """Count its bytes from now on, and give up what can be made again, unless anybody else
        keeps it: then not all have received it.

        Nearly every frame is only there to be replaced by the next one. So it takes half as much,
        and the next frame is encoded where this one was, which the caches still hold.
        """
        if not self._is_kept:
            self.forget_encodings()
            self.keep()

    def note_slow(self, peer: ConsumingPeer) -> None:
        """Note that a peer may have only a part of it."""
        self.keep()
        self.account.slow_peers.add(peer)

    def forget_encodings(self) -> None:
        """Give up what can be made again."""
        self._encoded = {codec: None for codec, each in self._encoded.items() if each is None}
        self._parts = self._probed = None
        self._grow(FRAME_BYTES + self.size - self.total_size)

    def _grow(self, size: int) -> None:
        """Note that it takes so many bytes more."""
        self.total_size += size
        if self._is_kept:
            self.account.count(size)

    def parts(self, codec: FrameForm) -> EncodedBurst | None:
        """The message as a row of `part` messages; None when it is short, or cannot be encoded."""
        if isinstance(codec, JpegParts) or not self.is_long:
            return None
        if self._parts is None:
            self._parts = {}
        try:
            return self._parts[codec]
        except KeyError:
            buffer = self._encode(codec)
            if buffer is None:
                self._parts[codec] = None
                return None
            payload = memoryview(buffer)[wire.MAX_HEADER_BYTES :]
            return self._keep_parts(codec, list(parts_of(codec, payload, self.stream_id)))

    def _keep_parts(self, codec: Codec, pieces: Sequence[Buffer]) -> EncodedBurst:
        if self._parts is None:
            self._parts = {}
        parts = self._parts[codec] = _joined(pieces, wire.probe(self.token))
        self._grow(len(parts.whole))
        return parts

    @property
    def unencodable(self) -> bool:
        """Whether it cannot be put into another encoding, as far as is known."""
        return isinstance(self.message, MalformedFrame) or (
            None in self._encoded.values()
            and any(
                each is None and not isinstance(form, JpegParts)
                for form, each in self._encoded.items()
            )
        )

    def message_as_sent(self) -> bytes:
        """The `video-frame` message in the encoding of its producer."""
        buffer = self._encode(self.codec)
        return b"" if buffer is None else bytes(memoryview(buffer)[wire.MAX_HEADER_BYTES :])

    def _encode(self, codec: Codec, data: Raw | None = None) -> bytearray | None:
        """The message behind room for a header; `data`: its data in this encoding, if that is
        known."""
        message = self.message
        metadata = None if message.metadata is NO_METADATA else message.metadata
        if codec is self.codec:
            data = message.data
        else:
            if isinstance(message, MalformedFrame):
                return None
            if data is None:
                content = self.codec.unpack(message.data)
                if content is None:
                    return None
                data = codec.pack(content)
            if metadata is not None:
                metadata = codec.pack(self.codec.read(metadata))
        event = VideoFrameEvent(
            stream_id=self.stream_id,
            seq=self.seq,
            timestamp=self.received_at if message.timestamp is None else message.timestamp,
            received_at=self.received_at,
            keyframe=message.keyframe,
            discardable=message.discardable,
            layer=None if self.layer is None else self.layer.id,
            metadata=metadata,
            data=data,
        )
        buffer = bytearray(wire.MAX_HEADER_BYTES)
        codec.encode_into(event, buffer, wire.MAX_HEADER_BYTES)
        return buffer


@frozen
class EncodedBurst:
    """The frames of a burst, or the parts of a frame, one behind the other in one buffer."""

    whole: Buffer
    ends: Sequence[int]
    """Where each of them ends."""
    _longer: Buffer = field(default=b"", eq=False)
    """`whole` with a probe behind it, if there is one."""

    @property
    def probed(self) -> EncodedBurst:
        """The same with a probe behind the last of them; of the parts of a frame only."""
        assert self._longer
        return EncodedBurst(self._longer, [*self.ends[:-1], len(self._longer)])

    def after(self, begun: int) -> deque[Buffer]:
        """Those behind the first `begun`."""
        view, starts = memoryview(self.whole), [0, *self.ends]
        return deque(view[starts[at] : starts[at + 1]] for at in range(begun, len(self.ends)))


def _joined(pieces: Sequence[Buffer], probe: Buffer = b"") -> EncodedBurst:
    whole, ends = b"".join((*pieces, probe)), list(accumulate(map(len, pieces)))
    if not probe:
        return EncodedBurst(whole, ends)
    return EncodedBurst(memoryview(whole)[: ends[-1]], ends, longer=whole)


@define(eq=False)
class Burst:
    """Frames of one stream that arrived together, small enough to be written together."""

    frames: Sequence[Frame]
    _encoded: dict[FrameForm, EncodedBurst | None] = field(factory=dict, repr=False)
    _has_long: bool | None = None

    @property
    def has_long(self) -> bool:
        """Whether there is a frame that goes in parts where that is asked for."""
        if self._has_long is None:
            self._has_long = any(frame.is_long for frame in self.frames)
        return self._has_long

    @property
    def missing_reference(self) -> bool:
        """Whether it begins with deltas that build on a frame that never arrived."""
        return self.frames[0].missing_reference

    def encoded(self, codec: FrameForm) -> EncodedBurst | None:
        """All frames, encoded; None if one of them cannot be represented."""
        try:
            return self._encoded[codec]
        except KeyError:
            encoded = self._encoded[codec] = self._encode(codec)
            return encoded

    def _encode(self, codec: FrameForm) -> EncodedBurst | None:
        pieces: list[Buffer] = []
        for frame in self.frames:
            encoded = frame.encoded(codec)
            if encoded is None:
                return None
            pieces.append(encoded)
        return _joined(pieces)


def bursts(messages: Sequence[VideoFrame]) -> Iterable[Sequence[VideoFrame]]:
    """Split frames into what may be written together: large frames alone, small ones in groups."""
    return (messages,) if len(messages) == 1 else _split(messages)


def _split(messages: Sequence[VideoFrame]) -> Iterator[Sequence[VideoFrame]]:
    start = size = 0
    for end, message in enumerate(messages):
        more = memoryview(message.data).nbytes
        if message.metadata is not NO_METADATA:
            more += memoryview(message.metadata).nbytes
        if end > start and size + more > MAX_BURST_BYTES:
            yield messages[start:end]
            start, size = end, 0
        size += more
    if messages:
        yield messages[start:]
