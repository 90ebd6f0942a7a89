"""Whatever may happen to a cluster: phones that come and go, links, nodes and tables that fail, and
news that come late, twice, out of order or never."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import trio
from attrs import define, field

from relay.model.cluster import StreamNews
from tests.unit.cluster.frames import VIEW, frame
from tests.unit.cluster.memory_cluster import MemoryCluster, MemoryNode
from tests.unit.cluster.memory_tables import MemoryNewsListener
from tests.unit.memory import Client, Closed

STREAMS = ("front-door", "side-door")
MAX_CLIENTS = 8
CALM_SECONDS = 40.0
"""In which all has to be well again: a dead node is noticed after 20 s."""


@define(eq=False)
class Participant:
    """A phone or a viewer, and what it was told."""

    client: Client
    node: str
    stream_id: str
    messages: list[dict[str, Any]] = field(factory=list)
    closed: tuple[Any, ...] | None = None
    sent: int = 0

    async def listen(self) -> None:
        try:
            while True:
                self.messages.append(await self.client.receive())
        except Closed as closed:
            self.closed = closed.args
        except (EOFError, OSError, trio.ClosedResourceError, trio.BrokenResourceError):
            self.closed = ("lost",)

    @property
    def produces(self) -> bool:
        """Whether it is a phone whose last registration went well."""
        answers = [each for each in self.messages if each["type"] in {"success", "error"}]
        codes = [each["code"] for each in answers if each["code"] != "INVALID_MESSAGE"]
        return self.closed is None and "REGISTERED" in codes

    @property
    def epochs(self) -> list[int]:
        """As it was told them, those of offline streams left out."""
        return [each["epoch"] for each in self.messages if each.get("epoch")]

    def frames(self) -> list[tuple[int, int, str]]:
        """The epoch, the `seq` and the data of each frame that it got."""
        epoch, found = 0, []
        for each in self.messages:
            if each.get("epoch"):
                epoch = each["epoch"]
            elif each["type"] == "video-frame":
                found.append((epoch, each["seq"], each["data"]))
        return found


@define(eq=False)
class Storm:
    """What happens to one cluster, by the choices of a test."""

    cluster: MemoryCluster
    random: Random
    phones: list[Participant] = field(factory=list)
    viewers: list[Participant] = field(factory=list)
    started: int = 0
    told: list[str] = field(factory=list)
    """What happened, for whoever reads of a failure."""
    unreliable: bool = False

    def __attrs_post_init__(self) -> None:
        self.cluster.tables.on_news = self._carry_news

    async def do(self, what: str) -> None:
        """Let one thing happen."""
        self.told.append(f"{trio.current_time():.3f} {what}")
        await getattr(self, f"_{what}")()

    @property
    def _alive(self) -> list[MemoryNode]:
        return [each for each in self.cluster.nodes.values() if each.alive]

    def _any_node(self) -> MemoryNode:
        return self.random.choice(self._alive)

    def _pair(self) -> tuple[str, str]:
        one, other = self.random.sample([each.name for each in self._alive], 2)
        return one, other

    # -- clients

    async def _register(self) -> None:
        open_phones = [each for each in self.phones if each.closed is None]
        if len(open_phones) < MAX_CLIENTS:
            phone = await self._come(self.phones)
            await phone.client.send({"type": "register", "streamId": phone.stream_id})

    async def _register_again(self) -> None:
        phone = self._choose(self.phones)
        if phone is not None:
            metadata = {"version": self.random.randrange(3)}
            request = {"type": "register", "streamId": phone.stream_id, "metadata": metadata}
            await phone.client.send(request)

    async def _publish(self) -> None:
        for phone in self.phones:
            if phone.closed is None and phone.produces:
                await self.send_frame(phone, self.random.choice([None, True, False, False]))

    async def send_frame(self, phone: Participant, keyframe: bool | None) -> str:
        """Send the next frame of a phone; returns its data."""
        phone.sent += 1
        content = f"{phone.stream_id} {self.phones.index(phone)} {phone.sent}".encode()
        message = frame(content, keyframe=keyframe)
        await phone.client.send(json.dumps(message))
        return str(message["data"])

    async def _watch(self) -> None:
        if len([each for each in self.viewers if each.closed is None]) < MAX_CLIENTS:
            viewer = await self._come(self.viewers)
            await viewer.client.send({**VIEW, "streamId": viewer.stream_id})

    async def _unwatch(self) -> None:
        viewer = self._choose(self.viewers)
        if viewer is not None:
            self._leave(viewer)

    async def _drop_phone(self) -> None:
        phone = self._choose(self.phones)
        if phone is not None:
            self._leave(phone)

    async def _come(self, to: list[Participant]) -> Participant:
        node = self._any_node()
        client = await node.relay.login()
        one = Participant(client, node.name, self.random.choice(STREAMS))
        to.append(one)
        self.cluster.nursery.start_soon(one.listen)
        return one

    def _choose(self, among: list[Participant]) -> Participant | None:
        found = [each for each in among if each.closed is None]
        return self.random.choice(found) if found else None

    def _leave(self, one: Participant) -> None:
        one.client.link.close()
        one.closed = ("left",)

    # -- what fails

    async def _cut(self) -> None:
        self.cluster.cut(*self._pair())

    async def _stall(self) -> None:
        for call in self.cluster.calls[-3:]:
            call.ours.stall()

    async def _go_on(self) -> None:
        for call in self.cluster.calls:
            call.ours.go_on()

    async def _separate(self) -> None:
        self.cluster.separate(*self._pair())

    async def _reconcile(self) -> None:
        self.cluster.partitions.clear()

    async def _kill(self) -> None:
        node = self._any_node()
        await node.kill()
        self.started += 1
        await self.cluster.start(f"{node.name[0]}{self.started}")

    async def _lose_tables(self) -> None:
        self._any_node().access.away = True

    async def _find_tables(self) -> None:
        for node in self._alive:
            node.access.away = node.access.loses_answers = False

    async def _lose_answers(self) -> None:
        self._any_node().access.loses_answers = True

    async def _slow_tables(self) -> None:
        self._any_node().access.delay = self.random.choice([0.01, 0.1, 0.6])

    async def _fast_tables(self) -> None:
        for node in self._alive:
            node.access.delay = 0.0

    async def _empty_tables(self) -> None:
        self.cluster.tables.empty()

    async def _doubt_news(self) -> None:
        self.unreliable = True

    async def _trust_news(self) -> None:
        self.unreliable = False

    async def _pause(self) -> None:
        await trio.sleep(0.001)

    async def _wait(self) -> None:
        await trio.sleep(self.random.choice([0.02, 0.06, 0.3, 1.2]))

    async def _wait_long(self) -> None:
        await trio.sleep(self.random.choice([3.0, 7.0, 20.0]))

    def _carry_news(self, listener: MemoryNewsListener, news: StreamNews) -> None:
        fate = self.random.random() if self.unreliable else 1.0
        if fate < 0.3:
            return  # swallowed
        if fate < 0.5:
            listener.put(news)
        if fate < 0.8:
            self.cluster.nursery.start_soon(self._carry_late, listener, news)
        else:
            listener.put(news)

    async def _carry_late(self, listener: MemoryNewsListener, news: StreamNews) -> None:
        await trio.sleep(self.random.choice([0.01, 0.2, 2.0]))
        listener.put(news)

    async def calm(self) -> None:
        """Let all work again, and wait until it has come to rest."""
        for what in ("go_on", "reconcile", "find_tables", "fast_tables", "trust_news"):
            await self.do(what)
        await trio.sleep(CALM_SECONDS)


CHOICES = {
    "register": 6, "register_again": 2, "publish": 10, "watch": 5, "unwatch": 1, "drop_phone": 2,
    "cut": 2, "stall": 1, "go_on": 2, "separate": 1, "reconcile": 2, "kill": 1, "lose_tables": 1,
    "find_tables": 2, "lose_answers": 1, "slow_tables": 1, "fast_tables": 1, "empty_tables": 1,
    "doubt_news": 1, "trust_news": 1, "pause": 4, "wait": 6, "wait_long": 1,
}  # fmt: skip
"""What can happen, and how often."""
