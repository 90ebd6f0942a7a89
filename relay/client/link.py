"""One connection of a client that comes back, from its `auth` to its end. Floor 2.

Whatever it is given to send waits here for the one writer, and whatever comes is handed on at once
and in order, answers among it: who asks is called back before anything behind the answer is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

import trio
from attrs import define, field

from relay.client.clock import RelayClock
from relay.client.errors import ServerError
from relay.client.events import Event, Notice, Problem
from relay.client.manners import LAST_WORDS, Ending, Manners, Word
from relay.client.messages import (
    MSGPACK,
    Fields,
    Reply,
    Unreadable,
    decode,
    encode,
    pack,
    server_error,
)
from relay.transport.dial import Closed, WebSocket

LATEST = 1 << 53
"""ms since the Unix epoch; what is later is no time."""
NOWHERE = "relay-client:nothing"
"""A stream that nobody subscribes to."""

Answer = Fields | ServerError
OnAnswer = Callable[[Answer], None]


@define(eq=False, repr=False)
class Link:
    """Made for an open WebSocket; `run` lives as long as the connection does."""

    _socket: WebSocket
    _manners: Manners
    _on_event: Callable[[Event], None]
    _clock: RelayClock = field(factory=RelayClock)
    ended: bool = False
    ready: bool = False
    """Whether it is authenticated."""
    bytes_taken: int = 0
    """Given to it to be sent, so far."""
    _questions: dict[int, tuple[OnAnswer, float]] = field(factory=dict)
    """Who asked, and when."""
    _last_id: int = 0
    _auth_id: int = 0
    _waiting: deque[str | bytes] = field(factory=deque)
    _acks: dict[str, str | bytes] = field(factory=dict)
    """Of each stream the last; one stands for all before."""
    _buffered: int = 0
    _due: trio.Event = field(factory=trio.Event)
    _answered_at: float = field(factory=trio.current_time)
    _word: Word | None = None
    _ending: Ending | None = None
    _polite: bool = False
    _nursery: trio.Nursery = field(init=False)

    @property
    def packed(self) -> bool:
        """Whether it speaks MessagePack."""
        return self._socket.subprotocol == MSGPACK

    @property
    def buffered(self) -> int:
        """Bytes that wait here, or that the kernel has not taken."""
        return self._buffered

    def authenticate(self, token: str, on_answer: OnAnswer) -> None:
        """The first message, or later the renewal of the session."""
        self.ask("auth", on_answer, token=token)
        self._auth_id = self._last_id

    def ask(self, kind: str, on_answer: OnAnswer, **fields: object) -> None:
        """Send a request; `on_answer` is called before any later message is read, unless the
        connection ends first."""
        if self.ended:
            return
        self._last_id += 1
        self._questions[self._last_id] = on_answer, trio.current_time()
        self.say(kind, id=self._last_id, **fields)

    def ping(self, on_answer: OnAnswer) -> None:
        """Ask for any answer at all: to leave a stream that was never entered is cheap."""
        self.ask("unsubscribe", on_answer, stream_id=NOWHERE)

    def say(self, kind: str, **fields: object) -> None:
        if not self.ended:
            message = self._encode(kind, **fields)
            self._waiting.append(message)
            self._buffered += len(message)
            self.bytes_taken += len(message)
            self._due.set()

    def acknowledge(self, stream_id: str, seq: int, epoch: int) -> None:
        if not self.ended:
            self._acks.pop(stream_id, None)
            life = {"epoch": epoch} if epoch else {}
            self._acks[stream_id] = self._encode("ack", stream_id=stream_id, seq=seq, **life)
            self._due.set()

    def _encode(self, kind: str, **fields: object) -> str | bytes:
        return pack(kind, **fields) if self.packed else encode(kind, **fields)

    def start(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do something that ends with the connection, if not before."""
        if not self.ended:
            self._nursery.start_soon(work)

    def later(self, delay: float, work: Callable[[], None]) -> None:
        """`work` in so many seconds, if the connection lasts so long."""

        async def wait() -> None:
            await trio.sleep(delay)
            work()

        self.start(wait)

    def leave(self, reason: str, *, politely: bool = False) -> None:
        """End the connection from here; politely where somebody is there to be told."""
        self._polite = politely
        if self._ending is None:
            self._ending = Ending(None, reason, self._word)
        if not self.ended:
            self._nursery.cancel_scope.cancel()

    async def run(self) -> Ending:
        """Read, write and look after the connection until its end."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._write)
                self._nursery.start_soon(self._watch)
                await self._read()
                self._nursery.cancel_scope.cancel()
        finally:
            self.ended, self.ready = True, False
            for waiting in (self._questions, self._waiting, self._acks):
                waiting.clear()
        assert self._ending is not None
        if self._ending.code is None and not self._polite:
            await self._socket.abort()  # to wait for an answer to our Close would be in vain
        return self._ending

    async def _read(self) -> None:
        ending: Ending | None = None
        try:
            while True:
                self._take(decode(await self._socket.receive(), packed=self.packed))
        except Closed as closed:
            ending = Ending(closed.code, closed.reason, self._word)
        except Unreadable as problem:
            ending = Ending(None, f"cannot read the relay: {problem}", self._word)
        self._ending = self._ending or ending

    def _take(self, message: Event | Reply | None) -> None:
        self._word = None
        match message:
            case None:
                return
            case Reply(answer=ServerError() as error) if self._ends(message, error):
                self._hear(error)
            case Problem():
                self._hear(server_error(message))
            case Notice():
                self._hear(message)
        if isinstance(message, Reply):
            self._take_answer(message)
        else:
            self._on_event(message)

    def _ends(self, reply: Reply, error: ServerError) -> bool:
        """Whether it may be a goodbye: the refusal of a request is none, but for `auth`."""
        asked = reply.request_id in self._questions and reply.request_id != self._auth_id
        return not asked or error.code in LAST_WORDS

    def _hear(self, word: Word) -> None:
        self._word = word
        if isinstance(word, ServerError) and word.code in LAST_WORDS:
            self.later(self._manners.goodbye, lambda: self.leave(word.message))

    def _take_answer(self, reply: Reply) -> None:
        on_answer, asked_at = self._questions.pop(reply.request_id, (None, 0.0))
        if on_answer is None:
            return
        self._answered_at = trio.current_time()
        if not isinstance(reply.answer, ServerError):
            stamp = reply.answer.get("timestamp")
            if isinstance(stamp, int | float) and 0 <= stamp < LATEST:
                self._clock.take(stamp, self._answered_at - asked_at)
        on_answer(reply.answer)

    async def _write(self) -> None:
        try:
            while True:
                await self._due.wait()
                self._due = trio.Event()
                while self._acks or self._waiting:
                    if self._acks:
                        await self._socket.send(self._acks.pop(next(iter(self._acks))))
                    else:
                        message = self._waiting.popleft()
                        await self._socket.send(message)
                        self._buffered -= len(message)
        except Closed:
            pass  # the reader tells

    async def _watch(self) -> None:
        """End the connection when nobody is there any more.

        Silence is one sign of that. That nothing is answered is another: much may be heard where
        nothing gets through to the relay.
        """
        silence, patience = self._manners.silence, self._manners.patience
        while True:
            heard, answered = self._socket.heard_at, self._answered_at
            await trio.sleep_until(min(heard + silence, answered + 3 * silence))
            now = trio.current_time()
            deaf = now >= self._answered_at + 3 * silence
            if not deaf and now < self._socket.heard_at + silence:
                continue
            if not await self._is_there(within=2 * patience if deaf else patience, deaf=deaf):
                self.leave("nothing is heard from the relay")

    async def _is_there(self, *, within: float, deaf: bool) -> bool:
        answered = trio.Event()
        asked = trio.current_time()
        self.ping(lambda _answer: answered.set())
        asked_with = self.bytes_taken
        with trio.move_on_after(within):
            await answered.wait()
            return True
        if deaf:  # unless the question still waits behind something large that is under way
            waits = self.bytes_taken - self._buffered < asked_with
            return waits and self._socket.moved_at > asked
        return self._socket.heard_at > asked
