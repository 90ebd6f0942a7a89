"""Relays that are killed under a load of alerts, clients that come back, and what they then have.

Alerts come over WebSockets, over HTTP and from SQL, each with a key, and are sent again with it
until they are acknowledged; SQL goes on while no relay lives. Consumers come back and ask for what
was meanwhile, as docs/protocol.md says. The relay is killed with SIGKILL at random moments, in
every second round exactly between the commit of alerts and the answer that tells relay of it.
"""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.client import HTTPException
from itertools import count
from random import Random

import trio
from attrs import define, field, frozen
from websockets.exceptions import WebSocketException

from tests.integration.accounts import Accounts
from tests.integration.commit_trap import CommitTrap, open_commit_trap
from tests.integration.peers import Message, Peer, login
from tests.integration.relay_process import PATIENCE, RelayProcess, start_relay, until

STREAMS = ("kill-a", "kill-b", "kill-c")
BROKEN = (OSError, EOFError, WebSocketException, HTTPException, trio.BrokenResourceError)
"""How a killed relay looks from outside."""
AGAIN = 0.05
"""Seconds before a client tries again."""
LONGEST_PAUSE = 0.03
"""Seconds between the alerts of one sender."""
LINGER = 0.3
"""Seconds in which what comes too often would come."""
SQL = "sql"
FLAGS = ("--alert-rate", "1000000/second", "--log-level", "warning", "--no-audit")


@frozen
class Sent:
    """An alert as its sender knows it."""

    stream_id: str
    key: str
    sender: str


@define(eq=False)
class Tally:
    """What was seen, over all rounds."""

    rounds: int = 0
    between: int = 0
    """Rounds that ended between a commit and its answer."""
    unheard: int = 0
    """Alerts that were stored when their relay was killed, and not acknowledged."""
    attempts: int = 0
    sent: dict[str, Sent] = field(factory=dict)
    """By key."""
    acknowledged: dict[str, int | None] = field(factory=dict)
    """Their ids by key; SQL is told none."""
    delivered: int = 0
    """To all consumers together, each alert once for each."""
    before_page: int = 0
    """Came live between a subscription without `alertsAfter` and the first page, and in that
    again."""
    doubled: int = 0
    disordered: int = 0
    lost: int = 0
    invented: int = 0
    contradicted: int = 0
    """Acknowledged with another id than they have."""

    def __str__(self) -> str:
        return (
            f"{self.rounds} rounds, {self.between} of them killed between commit and answer;"
            f" {len(self.sent)} alerts sent in {self.attempts} attempts,"
            f" {len(self.acknowledged)} acknowledged,"
            f" {self.unheard} stored but not acknowledged when the relay was killed;"
            f" {self.delivered} delivered to {CONSUMERS} consumers: {self.lost} lost,"
            f" {self.doubled} doubled, {self.disordered} out of order, {self.invented} invented,"
            f" {self.contradicted} acknowledged with a wrong id"
            f" ({self.before_page} came again with a first page, as documented)"
        )

    @property
    def flawless(self) -> bool:
        wrong = (self.lost, self.doubled, self.disordered, self.invented, self.contradicted)
        return not any(wrong) and len(self.acknowledged) == len(self.sent)


@define(eq=False)
class Site:
    """Where the relay is, while there is one."""

    relay: RelayProcess | None = None
    _changed: trio.Event = field(factory=trio.Event)

    async def find(self) -> RelayProcess:
        while self.relay is None:
            await self._changed.wait()
        return self.relay

    def become(self, relay: RelayProcess | None) -> None:
        self.relay = relay
        self._changed.set()
        self._changed = trio.Event()


@define(eq=False)
class Senders:
    """All that raise alerts."""

    tally: Tally
    site: Site
    accounts: Accounts
    token: str
    random: Random
    closing: bool = False
    """Whether no new alerts are to be sent."""
    open: set[str] = field(factory=set)
    """The keys of which the last attempt is not acknowledged yet."""
    talking: int = 0
    """How many have a connection to a relay."""
    _numbers: Iterator[int] = field(factory=count)

    def new(self, sender: str) -> Sent:
        key = f"{sender} {next(self._numbers)}"
        sent = Sent(self.random.choice(STREAMS), key, sender)
        self.tally.sent[key] = sent
        self.open.add(key)
        return sent

    def acknowledge(self, sent: Sent, alert_id: int | None) -> None:
        known = self.tally.acknowledged.setdefault(sent.key, alert_id)
        self.tally.contradicted += known != alert_id
        self.open.discard(sent.key)

    @contextmanager
    def _talk(self) -> Iterator[None]:
        self.talking += 1
        try:
            yield
        finally:
            self.talking -= 1

    async def over_websocket(self, name: str, together: int) -> None:
        """So many at a time on one connection; what has no answer is sent again on the next."""
        waiting: list[Sent] = []
        while waiting or not self.closing:
            try:
                relay = await self.site.find()
                with self._talk():
                    async with login(relay, self.token) as peer:
                        while waiting or not self.closing:
                            waiting += [self.new(name) for _ in range(together - len(waiting))]
                            await self._send(peer, waiting)
                            await trio.sleep(self.random.uniform(0, LONGEST_PAUSE))
            except* BROKEN:
                await trio.sleep(AGAIN)

    async def _send(self, peer: Peer, waiting: list[Sent]) -> None:
        by_id = dict(enumerate(waiting))
        for number, sent in by_id.items():
            self.tally.attempts += 1
            await peer.send({**alert(sent), "id": number})
        while by_id:
            reply = await peer.receive()
            sent = by_id.pop(reply["id"])
            if reply["type"] == "success":
                self.acknowledge(sent, reply["alertId"])
                waiting.remove(sent)
            else:
                assert reply["code"] == "STORE_UNAVAILABLE", reply

    async def over_http(self, name: str) -> None:
        headers = {"Authorization": f"Bearer {self.token}"}
        while not self.closing:
            sent = self.new(name)
            body = json.dumps(alert(sent)).encode()
            left = 2 if self.random.random() < 0.2 else 1  # again, although it was acknowledged
            while left:
                relay = await self.site.find()
                self.tally.attempts += 1
                self.open.add(sent.key)
                try:
                    with self._talk():
                        answer = await relay.get("/alerts", "POST", headers=headers, body=body)
                except BROKEN:
                    await trio.sleep(AGAIN)
                    continue
                if answer.status == 200:
                    left -= 1
                    self.acknowledge(sent, answer.json()["alertId"])
                else:
                    assert answer.status == 503, answer.body
            await trio.sleep(self.random.uniform(0, LONGEST_PAUSE))

    async def from_sql(self, name: str) -> None:
        while not self.closing:
            sent = self.new(name)
            self.tally.attempts += 1
            await trio.to_thread.run_sync(
                self.accounts.execute,
                "select relay.raise_alert(%s, %s, alert_key => %s)",
                *(sent.stream_id, sent.key, sent.key),
            )
            self.acknowledge(sent, None)
            await trio.sleep(self.random.uniform(0, LONGEST_PAUSE))


def alert(sent: Sent) -> Message:
    fields = {"streamId": sent.stream_id, "message": sent.key, "alertKey": sent.key}
    return {"type": "alert", "severity": "low", **fields}


@define(eq=False)
class Consumer:
    """One that comes back; `scope` is the stream that it replays, or None for all."""

    tally: Tally
    site: Site
    token: str
    scope: str | None
    seen: dict[int, Message] = field(factory=dict)

    @property
    def streams(self) -> tuple[str, ...]:
        return STREAMS if self.scope is None else (self.scope,)

    def has_all(self, counts: dict[str, int]) -> bool:
        """Whether it has seen so many alerts of each stream."""
        return len(self.seen) >= sum(counts[stream_id] for stream_id in self.streams)

    async def run(self) -> None:
        while True:
            try:
                relay = await self.site.find()
                async with login(relay, self.token) as peer:
                    await self._watch(peer)
            except* BROKEN:
                await trio.sleep(AGAIN)

    async def _watch(self, peer: Peer) -> None:
        latest: dict[str, int] = {}
        after = max(self.seen, default=0)
        if self.scope is None:
            for stream_id in self.streams:
                await self._subscribe(peer, stream_id)
            more = await self._replay(peer, after, latest, first=True)
        else:  # then nothing may come twice, whenever it was accepted
            await self._subscribe(peer, self.scope, alertsAfter=after)
            more = await self._read_page(peer, latest)
        while more:
            more = await self._replay(peer, max(self.seen, default=0), latest)
        while True:
            self._take(await peer.receive_type("alert"), latest)

    async def _subscribe(self, peer: Peer, stream_id: str, **terms: int) -> None:
        subscription = {"type": "subscribe", "streamId": stream_id, "consumes": ["alert"]}
        await peer.send(subscription | terms)

    async def _replay(
        self, peer: Peer, after: int, latest: dict[str, int], *, first: bool = False
    ) -> bool:
        scope = {} if self.scope is None else {"streamId": self.scope}
        await peer.send({"type": "alerts-since", "after": after, "limit": 100, **scope})
        return await self._read_page(peer, latest, with_early=first)

    async def _read_page(
        self, peer: Peer, latest: dict[str, int], *, with_early: bool = False
    ) -> bool:
        """Returns whether there is another page."""
        page: list[Message] = []
        while True:
            message = await peer.receive()
            assert message["type"] != "error", message
            if message["type"] == "alert":
                page.append(message)
            elif message.get("code") == "ALERTS_REPLAYED":
                for alert in self._without_early(page) if with_early else page:
                    self._take(alert, latest)
                return bool(message["more"])

    def _without_early(self, page: list[Message]) -> list[Message]:
        """What came live between a subscription without `alertsAfter` and the first page comes with
        it again, or with a later one."""
        ids = [message["alertId"] for message in page]
        early = 0
        while early + 1 < len(ids) and ids[early] >= min(ids[early + 1 :]):
            early += 1
        self.tally.before_page += early
        return page[early:]

    def _take(self, message: Message, latest: dict[str, int]) -> None:
        alert_id, stream_id = message["alertId"], message["streamId"]
        self.tally.doubled += alert_id in self.seen
        self.tally.disordered += alert_id <= latest.get(stream_id, 0)
        latest[stream_id] = alert_id
        self.seen[alert_id] = message


CONSUMERS = 1 + len(STREAMS)


async def play(database_url: str, *, rounds: int, seed: str, say: bool = False) -> Tally:
    """Kill a relay so often; returns what came of it, once everybody has everything."""
    tally, site, random = Tally(), Site(), Random(seed)
    accounts = Accounts(database_url)
    ann, service = accounts.session("ann"), accounts.service("*")
    claim = "insert into relay.streams (stream_id, owner_id) select unnest(%s::text[]), 'ann'"
    accounts.execute(claim, list(STREAMS))
    senders = Senders(tally, site, accounts, service, random)
    consumers = [Consumer(tally, site, service, None)]
    consumers += [Consumer(tally, site, ann, stream_id) for stream_id in STREAMS]
    async with open_commit_trap(database_url) as trap, trio.open_nursery() as nursery:
        for consumer in consumers:
            nursery.start_soon(consumer.run)
        async with trio.open_nursery() as sending:
            sending.start_soon(senders.over_websocket, "one at a time", 1)
            sending.start_soon(senders.over_websocket, "ten at a time", 10)
            sending.start_soon(senders.over_http, "http")
            sending.start_soon(senders.from_sql, SQL)
            for number in range(1, rounds + 1):
                async with running(trap, site) as relay:
                    await trio.sleep(random.uniform(0.1, 0.8))
                    await _kill(relay, senders, trap if number % 2 == 0 else None)
                if say:
                    print(f"round {number}: {tally}", flush=True)  # noqa: T201
            senders.closing = True
            last = await sending.start(_keep_running, trap, site)
            try:
                await until(lambda: not senders.open)
            except trio.TooSlowError:
                raise AssertionError(f"not acknowledged: {senders.open}; {tally}") from None
            counts = dict(
                accounts.execute("select stream_id, count(*) from relay.alerts group by stream_id")
            )
            # What is missing then, the judge says.
            with trio.move_on_after(PATIENCE / 2):
                await until(lambda: all(consumer.has_all(counts) for consumer in consumers))
            await trio.sleep(LINGER)
            last.cancel()
        nursery.cancel_scope.cancel()
    _judge(tally, accounts, consumers)
    return tally


async def _kill(relay: RelayProcess, senders: Senders, trap: CommitTrap | None) -> None:
    tally = senders.tally
    if trap is not None:
        with trio.move_on_after(PATIENCE) as waiting:
            await trap.catch()
        assert not waiting.cancelled_caught, f"no commit; not acknowledged: {senders.open}"
        tally.between += 1
    relay.signal(signal.SIGKILL)
    senders.site.become(None)
    await relay.ended()
    await until(lambda: senders.talking == 0)  # what it still answered has been read
    unsure = [key for key in senders.open if tally.sent[key].sender != SQL]
    stored = "select count(*) from relay.alerts where alert_key = any(%s)"
    ((unheard,),) = senders.accounts.execute(stored, unsure)
    tally.unheard += unheard
    tally.rounds += 1


@asynccontextmanager
async def running(trap: CommitTrap, site: Site) -> AsyncIterator[RelayProcess]:
    """A relay that others find; starting it holds up nobody."""
    starting = start_relay(*FLAGS, database_url=trap.url)
    relay = await trio.to_thread.run_sync(starting.__enter__)
    site.become(relay)
    try:
        yield relay
    finally:
        site.become(None)
        with trio.CancelScope(shield=True):  # it takes `PATIENCE` at most
            await trio.to_thread.run_sync(starting.__exit__, None, None, None)


async def _keep_running(
    trap: CommitTrap, site: Site, *, task_status: trio.TaskStatus[trio.CancelScope]
) -> None:
    with trio.CancelScope() as scope:
        async with running(trap, site):
            task_status.started(scope)
            await trio.sleep_forever()


def _judge(tally: Tally, accounts: Accounts, consumers: list[Consumer]) -> None:
    rows = accounts.execute("select alert_id, stream_id, alert_key from relay.alerts")
    stored = {key: alert_id for alert_id, _, key in rows}
    by_id = {alert_id: (stream_id, key) for alert_id, stream_id, key in rows}
    tally.doubled += len(rows) - len(stored)
    tally.invented += len(stored.keys() - tally.sent.keys())
    tally.lost += len(tally.acknowledged.keys() - stored.keys())
    tally.contradicted += sum(
        alert_id not in {None, stored.get(key)} for key, alert_id in tally.acknowledged.items()
    )
    for consumer in consumers:
        tally.delivered += len(consumer.seen)
        meant = {each for each, (stream_id, _) in by_id.items() if stream_id in consumer.streams}
        tally.lost += len(meant - consumer.seen.keys())
        tally.invented += sum(
            by_id.get(alert_id) != (message["streamId"], message["message"])
            for alert_id, message in consumer.seen.items()
        )
