"""Whatever phones and viewers do, in whatever order: what must hold, holds.

The rules below only write down what happens, which keeps them free of Trio; the story is played
against the real connection code when it is complete.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    precondition,
    rule,
)
from trio.testing import MockClock, wait_all_tasks_blocked

from relay.connection.connection import Connection
from relay.connection.context import Timing
from relay.hub.paced_writer import FRESHER_TOLERANCE, MAX_FRESHER_WAIT
from relay.logs.setup import configure_logging
from relay.protocol.endings import Ending
from tests.unit.memory import Client, Closed, MemoryRelay, open_relay

LOSSLESS_BYTES = 64 * 1024
NARROW = 4096
"""Bytes under way to a viewer before it stalls."""
FRESHER_SECONDS = MAX_FRESHER_WAIT + FRESHER_TOLERANCE + 0.001
"""After which a free link waits for no picture that is newer than the one that waits."""

Message = dict[str, Any]
Kind = bool | str | None
"""The `keyframe` of a frame, or `discardable`."""
Epoch = int
"""An epoch of the stream."""
Picture = tuple[Epoch, int]
"""Epoch and `seq`."""


@define(eq=False)
class Published:
    """A frame as its phone sent it."""

    data: str
    keyframe: bool | None
    decodable_after: Picture | None
    """The frame that this one builds on; None if on none."""
    lost_base: bool
    """Whether it builds on one that the relay never got from this phone."""
    discardable: bool
    """Whether no frame builds on it."""


@define(eq=False)
class Subscription:
    """What one viewer got on one set of terms."""

    policy: str
    max_fps: float | None
    window: int | None
    got: list[Picture] = field(factory=list)
    unacknowledged: int = 0


@define(eq=False)
class Viewer:
    """A consumer, and what it knows."""

    client: Client
    connection: Connection
    """The relay's side of it."""
    subscriptions: list[Subscription] = field(factory=list)
    subscribed: bool = False
    epoch: Epoch = 0
    """As it was told."""
    last_seq: int = 0
    ended: str | None = None
    """The code that it was told at the end."""
    vanished: bool = False


@define(eq=False)
class World:
    """A relay, those who use it, and what of it they have seen."""

    relay: MemoryRelay
    viewers: dict[int, Viewer] = field(factory=dict)
    published: dict[Picture, Published] = field(factory=dict)
    phone: Client | None = None
    lost_at: float | None = None
    epoch: Epoch = 0
    seq: int = 0
    base: Picture | None = None
    """What the phone's next delta builds on."""

    async def register(self) -> None:
        before, self.phone = self.phone, await self.relay.login()
        reply = await self.phone.ask({"type": "register", "streamId": "s"})
        assert reply["code"] == "REGISTERED"
        gone = self.lost_at is not None and trio.current_time() - self.lost_at > 5
        if self.epoch and not gone:
            assert reply["epoch"] == self.epoch, "a short loss or a takeover was seen"
        else:
            assert reply["epoch"] > self.epoch
            self.epoch, self.seq = reply["epoch"], 0
        self.lost_at, self.base = None, None
        if before is not None:
            error, close = await before.hear_end()
            assert (error["code"], close[0]) == ("SUPERSEDED", 4502)

    async def lose_phone(self) -> None:
        if self.phone is not None:
            self.phone.link.close()
            self.phone, self.lost_at = None, trio.current_time()

    async def publish(self, size: int, kind: Kind) -> None:
        if self.phone is None:
            return
        self.seq += 1
        picture = (self.epoch, self.seq)
        data = base64.b64encode(f"{picture} ".encode().ljust(size)).decode()
        discardable = kind == "discardable"
        keyframe = None if kind is None else kind is True
        self.published[picture] = Published(
            data,
            keyframe,
            None if keyframe is not False else self.base,
            self.base is None,
            discardable,
        )
        if not discardable:
            self.base = picture
        extra: Message = {} if keyframe is None else {"keyframe": keyframe}
        if discardable:
            extra["discardable"] = True
        await self.phone.send({"type": "video-frame", "data": data, **extra})

    async def open_viewer(self, name: int, msgpack: bool, capacity: int) -> None:
        client = await self.relay.login(capacity=capacity, msgpack=msgpack)
        self.viewers[name] = Viewer(client, self.relay.connections[-1])

    async def subscribe(self, name: int, terms: Message) -> None:
        viewer = self.viewers[name]
        await self.read(name)
        if viewer.ended is not None:
            return
        request = {"type": "subscribe", "streamId": "s", "consumes": ["video-frame"], **terms}
        await viewer.client.send(request)
        viewer.subscriptions.append(
            Subscription(terms.get("policy", "latest"), terms.get("maxFps"), terms.get("window"))
        )
        viewer.subscribed = True

    async def unsubscribe(self, name: int) -> None:
        viewer = self.viewers[name]
        if viewer.subscribed and viewer.ended is None:
            viewer.subscribed = False
            await viewer.client.send({"type": "unsubscribe", "streamId": "s"})

    async def vanish(self, name: int) -> None:
        self.viewers[name].vanished = True
        self.viewers[name].client.link.close()

    async def read(self, name: int) -> None:
        """Take in all that has come, and what comes then."""
        viewer = self.viewers[name]
        if viewer.ended is not None or viewer.vanished:
            return
        for message in await whatever_comes(viewer.client):
            self.hear(viewer, message)
        if viewer.client.link.incoming.broken and viewer.ended is None:
            # It read so little that not even the goodbye fitted.
            assert viewer.connection.peer.ending is Ending.TOO_SLOW
            viewer.ended = "TOO_SLOW"

    def hear(self, viewer: Viewer, message: Message) -> None:
        match message["type"]:
            case "video-frame":
                self.see(viewer, message)
            case "status":
                if message["epoch"] not in (0, viewer.epoch):
                    viewer.epoch, viewer.last_seq = message["epoch"], 0
                    if viewer.subscriptions:  # what is under way of the epoch before counts no more
                        viewer.subscriptions[-1].unacknowledged = 0
            case "success" if message["code"] == "SUBSCRIBED":
                viewer.last_seq = 0  # the latest comes again
            case "error":
                viewer.ended = message["code"]

    def see(self, viewer: Viewer, frame: Message) -> None:
        picture = (viewer.epoch, frame["seq"])
        assert frame["seq"] > viewer.last_seq, "doubled, or out of order"
        first, viewer.last_seq = viewer.last_seq == 0, frame["seq"]
        published = self.published[picture]
        data = frame["data"]
        if isinstance(data, bytes):
            data = base64.b64encode(data).decode()
        assert data == published.data
        subscription = viewer.subscriptions[-1]
        before = subscription.got[-1] if subscription.got else None
        if published.keyframe is False:
            bases = [each for each in subscription.got if not self.published[each].discardable]
            assert not published.lost_base
            assert bases[-1:] == [published.decodable_after], "a decoder cannot use it"
        if subscription.policy == "lossless" and subscription.max_fps is None and not first:
            assert before is not None
            between = [self.published[viewer.epoch, n] for n in range(before[1] + 1, frame["seq"])]
            joined = len(subscription.got) == 1  # with the last keyframe: deltas may follow that
            assert all(each.lost_base or (joined and each.keyframe is False) for each in between)
        subscription.got.append(picture)
        subscription.unacknowledged += 1
        if subscription.window is not None:
            assert subscription.unacknowledged <= subscription.window

    async def acknowledge(self, name: int, back: int) -> None:
        """Acknowledge what was got, but for the last so many."""
        viewer = self.viewers[name]
        if not viewer.subscriptions or viewer.ended is not None or viewer.vanished:
            return
        subscription = viewer.subscriptions[-1]
        got = [seq for epoch, seq in subscription.got if epoch == viewer.epoch]
        if len(got) > back:
            subscription.unacknowledged = min(subscription.unacknowledged, back)
            await viewer.client.send({"type": "ack", "streamId": "s", "seq": got[-1 - back]})

    async def wait(self, seconds: float) -> None:
        await trio.sleep(seconds)

    def check(self) -> None:
        """What holds at every moment."""
        ledger = self.relay.hub.ledger()
        assert ledger.accepted == ledger.written + sum(ledger.dropped.values()) + ledger.waiting
        stream = self.relay.hub._streams.get("s")
        for consumer in stream.watchers if stream else ():
            if consumer._flow_control.policy == "latest":
                assert consumer.waiting_frames <= 1
            elif consumer.waiting_frames > 1:
                assert consumer._waiting.bytes <= LOSSLESS_BYTES  # type: ignore[attr-defined]

    async def conclude(self) -> None:
        """When everybody has read and acknowledged all, each has the newest that it may."""
        for name, viewer in self.viewers.items():
            for _ in range(200):
                seen = viewer.last_seq
                await self.read(name)
                await self.acknowledge(name, 0)
                await trio.sleep(FRESHER_SECONDS)
                await self.read(name)
                if viewer.last_seq == seen:
                    break
            self.check_end(viewer)
        ledger = self.relay.hub.ledger()
        got = sum(len(each.got) for v in self.viewers.values() for each in v.subscriptions)
        assert got <= ledger.written
        if not any(viewer.vanished or viewer.ended for viewer in self.viewers.values()):
            assert got == ledger.written
            assert ledger.waiting == 0

    def check_end(self, viewer: Viewer) -> None:
        if viewer.ended is not None:
            assert viewer.ended == "TOO_SLOW"
            assert viewer.subscriptions[-1].policy == "lossless"
        elif viewer.subscribed and not viewer.vanished and self.phone is not None and self.seq:
            newest, subscription = (self.epoch, self.seq), viewer.subscriptions[-1]
            if self.published[newest].keyframe is not False and subscription.max_fps is None:
                assert subscription.got[-1:] == [newest], "the newest was not delivered"


async def whatever_comes(client: Client) -> list[Message]:
    """All messages until nothing more comes."""
    messages: list[Message] = []

    async def read() -> None:
        try:
            while True:
                messages.append(await client.receive())
        except (Closed, EOFError, ConnectionResetError):
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return messages


Deed = Callable[[World], Awaitable[None]]


async def play(story: list[Deed]) -> None:
    configure_logging("error")
    async with open_relay() as relay:
        relay.timing = Timing(10.0, 1e6, 1e6, 1 << 20)
        world = World(relay)
        for deed in story:
            await deed(world)
            await wait_all_tasks_blocked()
            world.check()
        await world.conclude()


TERMS = st.fixed_dictionaries(
    {},
    optional={
        "policy": st.sampled_from(["latest", "lossless"]),
        "maxFps": st.sampled_from([0.5, 3]),
        "window": st.sampled_from([1, 2, 5]),
    },
)
KINDS = st.one_of(
    st.lists(st.none(), min_size=1, max_size=5),
    st.lists(st.sampled_from([True, False, False, False]), min_size=1, max_size=8),
    st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=5),
    st.lists(st.sampled_from([True, False, False, "discardable"]), min_size=1, max_size=8),
)


class Story(RuleBasedStateMachine):
    """What phones and viewers may do."""

    viewers: Bundle[int] = Bundle("viewers")

    def __init__(self) -> None:
        super().__init__()
        self.story: list[Deed] = [World.register]
        self.named = 0

    def then(self, deed: Callable[..., Awaitable[None]], *details: Any) -> None:
        self.story.append(lambda world: deed(world, *details))

    @precondition(lambda self: self.named < 5)
    @rule(target=viewers, msgpack=st.booleans(), narrow=st.booleans(), terms=TERMS)
    def somebody_comes(self, msgpack: bool, narrow: bool, terms: Message) -> int:
        self.named += 1
        self.then(World.open_viewer, self.named, msgpack, NARROW if narrow else 64 * 1024)
        self.then(World.subscribe, self.named, terms)
        return self.named

    @rule(viewer=viewers, terms=TERMS)
    def viewer_subscribes_again(self, viewer: int, terms: Message) -> None:
        self.then(World.subscribe, viewer, terms)

    @rule(viewer=viewers, back=st.sampled_from([None, 0, 0, 1, 2]))
    def viewer_reads(self, viewer: int, back: int | None) -> None:
        self.then(World.read, viewer)
        if back is not None:
            self.then(World.acknowledge, viewer, back)

    @rule(viewer=consumes(viewers), how=st.sampled_from([World.vanish, World.unsubscribe]))
    def viewer_leaves(self, viewer: int, how: Callable[..., Awaitable[None]]) -> None:
        self.then(how, viewer)

    @rule(size=st.sampled_from([20, 1500, 7000, 20_000]), kinds=KINDS)
    def phone_publishes(self, size: int, kinds: list[Kind]) -> None:
        for kind in kinds:
            self.then(World.publish, size, kind)

    @rule(away=st.sampled_from([None, 0.3, 6.0]))
    def phone_connects_anew(self, away: float | None) -> None:
        """After so many seconds, or while the old connection is still there."""
        if away is not None:
            self.then(World.lose_phone)
            self.then(World.wait, away)
        self.then(World.register)

    @rule(seconds=st.sampled_from([0.31, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.then(World.wait, seconds)

    def teardown(self) -> None:
        trio.run(play, self.story, clock=MockClock(autojump_threshold=0))


TestStory = Story.TestCase
TestStory.settings = settings(
    max_examples=settings().max_examples * 3 // 2, stateful_step_count=25, deadline=None
)
