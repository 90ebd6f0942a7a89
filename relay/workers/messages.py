"""What the parent process and its workers say to each other. Values only.

A message is its length in 4 bytes, the most significant first, and then a MessagePack array: its
number and its fields. Both ends are processes of this relay, and yet nothing is believed that does
not fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from attrs import define, field

VERSION = 2
"""Of these messages: a worker of a relay that was updated meanwhile may know other ones."""
MAX_ORDER_BYTES = 64 << 20
"""Bytes of a message. The largest has the figures of all streams of a worker."""
MAX_CONTENT_BYTES = MAX_ORDER_BYTES - (1 << 20)
"""Bytes of the content of a message, or of the contents of all answers together."""
LENGTH_BYTES = 4


class ControlError(Exception):
    """The other process has sent what is no message."""


class Control(msgspec.Struct, frozen=True, array_like=True):
    """A message of the control channel."""


# -- from the parent to a worker


class Begin(Control, frozen=True, array_like=True, tag=1):
    """The first message: what to serve."""

    version: int
    slot: int
    """The number of the worker on this machine, from 1 on."""
    settings: dict[str, Any]
    """With secrets."""
    machine: str
    """The id of this machine, for other nodes."""
    sockets: str
    """The folder of the sockets of its workers."""
    address: str | None
    """`HOST:PORT` at which nodes of other machines reach it."""
    secret: bytes
    """Of the machine: for the digests of addresses and tokens."""

    def __repr__(self) -> str:
        return f"Begin(slot={self.slot})"


class Take(Control, frozen=True, array_like=True, tag=2):
    """Serve a connection, whose descriptor comes with these bytes."""

    number: int
    accepted_at: float
    """By `time.monotonic()`."""
    peer: str
    """`HOST:PORT`."""


class Drain(Control, frozen=True, array_like=True, tag=3):
    """Ask all clients to come back, and end when they have left, or by the timeout."""

    timeout: float
    """Seconds."""


class Stop(Control, frozen=True, array_like=True, tag=4):
    """End at once."""


class Rotate(Control, frozen=True, array_like=True, tag=5):
    """Read the TLS certificate again."""


class CrowdOut(Control, frozen=True, array_like=True, tag=6):
    """End a connection, since too many on this machine are not authenticated."""

    number: int


class Question(Control, frozen=True, array_like=True, tag=7):
    """Say or do something for the machine: a worker asks."""

    question: int
    """The number of the question, for the answer."""
    what: str
    """See `relay.web.machine`."""
    content: bytes = b""


class GatheredAnswer(Control, frozen=True, array_like=True):
    """The answer of one worker."""

    slot: int
    content: bytes | None
    """None when it is late or has nothing to say."""
    late: bool = False
    """Whether the content is from before the question."""


class Gathered(Control, frozen=True, array_like=True, tag=8):
    """The answers of all workers."""

    question: int
    """As in the `Ask`."""
    answers: list[GatheredAnswer]
    states: dict[str, int]
    """How many workers are in each state."""
    ended: bytes | None = None
    """What workers had counted that have ended; only for `totals`."""


class TakeLink(Control, frozen=True, array_like=True, tag=9):
    """Serve another node, whose descriptor comes with these bytes."""

    number: int
    preface: bytes
    """What was read of it already; see `relay.cluster.links.proof`."""


class Bans(Control, frozen=True, array_like=True, tag=10):
    """Refuse addresses or tokens."""

    keys: dict[str, float]
    """Seconds by digests; 0 lifts a ban."""


class KnownTokens(Control, frozen=True, array_like=True, tag=11):
    """Tokens that were good lately, so that bans of their addresses do not concern them."""

    keys: dict[str, float]
    """Seconds by digests; 0 for one that is good no longer."""


class LogBan(Control, frozen=True, array_like=True, tag=12):
    """Log that an address is banned: the worker, unlike the parent, can name it."""

    key: str


class Receive(Control, frozen=True, array_like=True, tag=13):
    """Be ready to serve a viewer of another worker, whose descriptor comes with these bytes; read
    and write nothing before it is settled."""

    number: int
    stream_id: str
    viewer: bytes
    """With its token; see `relay.connection.relocation`."""

    def __repr__(self) -> str:
        return f"Receive(number={self.number})"


class Settled(Control, frozen=True, array_like=True, tag=14):
    """Go on with a viewer that may go to another worker, or leave it to that."""

    number: int
    yours: bool


class EndConnection(Control, frozen=True, array_like=True, tag=15):
    """End a connection for what happened to it on its way here."""

    number: int
    revoked: bool
    """Whether its session was revoked; else an operator has ended it."""


# -- from a worker to the parent


class Ready(Control, frozen=True, array_like=True, tag=21):
    """The worker serves."""

    node_id: str
    """Of the worker, for other nodes."""


class Failed(Control, frozen=True, array_like=True, tag=22):
    """The worker ends, since something is wrong that relay can explain."""

    reason: str


class Took(Control, frozen=True, array_like=True, tag=23):
    """The worker serves a connection, and the parent can close its copy of the socket."""

    number: int


class Known(Control, frozen=True, array_like=True, tag=24):
    """The client of a connection is authenticated."""

    number: int


class Left(Control, frozen=True, array_like=True, tag=25):
    """A connection is over; before it was taken: the worker does not serve it."""

    number: int


class Beat(Control, frozen=True, array_like=True, tag=26):
    """The worker lives, and this is what it has counted."""

    totals: bytes


class Ask(Control, frozen=True, array_like=True, tag=27):
    """Ask all workers, or have them do something."""

    question: int
    what: str
    content: bytes = b""


class Told(Control, frozen=True, array_like=True, tag=28):
    """What the worker was asked with `Question`."""

    question: int
    content: bytes | None


class Attempted(Control, frozen=True, array_like=True, tag=29):
    """Somebody tried to authenticate."""

    address: str
    """A digest, as the token."""
    token: str
    good: bool


class Relocate(Control, frozen=True, array_like=True, tag=30):
    """Have another worker serve a viewer, whose descriptor comes with these bytes, and settle it in
    any case."""

    number: int
    node_id: str
    """Of the worker."""
    stream_id: str
    viewer: bytes
    """With its token."""

    def __repr__(self) -> str:
        return f"Relocate(number={self.number})"


class Received(Control, frozen=True, array_like=True, tag=31):
    """The answer to `Receive`."""

    number: int
    is_ready: bool
    """Whether the worker can serve the viewer."""


class EndElsewhere(Control, frozen=True, array_like=True, tag=32):
    """End a connection that another worker serves now."""

    number: int
    revoked: bool


Order = (
    Begin
    | Take
    | TakeLink
    | Drain
    | Stop
    | Rotate
    | CrowdOut
    | Question
    | Gathered
    | Bans
    | KnownTokens
    | LogBan
    | Receive
    | Settled
    | EndConnection
)
News = (
    Ready
    | Failed
    | Took
    | Known
    | Left
    | Beat
    | Ask
    | Told
    | Attempted
    | Relocate
    | Received
    | EndElsewhere
)

_encode = msgspec.msgpack.Encoder().encode


def pack(message: Control) -> bytes:
    """A message with its length; `ControlError` when it is too large."""
    body = _encode(message)
    if len(body) > MAX_ORDER_BYTES:
        raise ControlError(f"a message of {len(body)} bytes is too large")
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


@define(eq=False)
class ControlReader:
    """Finds messages in bytes, however they are torn."""

    _decoder: msgspec.msgpack.Decoder[Any]
    _rest: bytearray = field(init=False, factory=bytearray, repr=False)

    @classmethod
    def of_orders(cls) -> ControlReader:
        return cls(msgspec.msgpack.Decoder(Order))

    @classmethod
    def of_news(cls) -> ControlReader:
        return cls(msgspec.msgpack.Decoder(News))

    def feed(self, data: bytes) -> Iterator[Any]:
        """The messages that are whole now; `ControlError` at the first that is none."""
        rest = self._rest
        rest += data
        while len(rest) >= LENGTH_BYTES:
            length = int.from_bytes(rest[:LENGTH_BYTES], "big")
            if length > MAX_ORDER_BYTES:
                raise ControlError(f"a message of {length} bytes is too large")
            end = LENGTH_BYTES + length
            if len(rest) < end:
                return
            body = bytes(rest[LENGTH_BYTES:end])
            del rest[:end]
            try:
                yield self._decoder.decode(body)
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as problem:
                raise ControlError("a message cannot be read") from problem
