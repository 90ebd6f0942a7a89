"""Alerts that are as costly to read as can be stop neither live alerts nor anything else."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import msgpack
import psycopg
import pytest
import trio
from attrs import frozen
from websockets.exceptions import ConnectionClosed

from tests.integration.accounts import Accounts
from tests.integration.peers import Message, Peer, login, new_stream_id
from tests.integration.relay_process import RelayProcess, start_relay

ATTACKS = 600
"""As many alerts as one user may send in a minute."""
STORED = 100
"""Alerts that an older relay has stored at once."""
MAX_DELAY = 25.0
"""Seconds from sending an honest alert to its arrival, behind all those that were sent before it;
on a machine that does other things, too."""
LISTS: list[object] = [[]] * 65_000
"""One byte each in MessagePack, three in JSON."""


def alert(stream_id: str, text: str, **fields: object) -> Message:
    fields = {"streamId": stream_id, "severity": "low", "message": text, **fields}
    return {"type": "alert", **fields}


async def send_heavy_alerts(peer: Peer, stream_id: str) -> None:
    """Several at a time. Whether they are stored or refused, and how often, is relay's choice."""
    heavy = msgpack.packb(alert(stream_id, "heavy", metadata={"a": LISTS}, id=1))

    async def send_all() -> None:
        with suppress(ConnectionClosed):
            for _ in range(ATTACKS):
                await peer.socket.send(heavy)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all)
        with suppress(ConnectionClosed):
            for _ in range(ATTACKS):
                assert (await peer.receive())["type"] in {"success", "error"}


def store_heavy_alerts(url: str, stream_id: str) -> None:
    """As an older relay has stored them."""
    with psycopg.connect(url, autocommit=True) as connection:
        for _ in range(2):
            connection.execute(
                "select count(*) from relay.store_alerts(array_fill(%(stream)s::text, %(n)s),"
                " array_fill('user:mallory'::text, %(n)s), array_fill('low'::text, %(n)s),"
                " array_fill('heavy'::text, %(n)s), array_fill(1::bigint, %(n)s),"
                " array_fill(json_build_object('a', (%(lists)s)::json), %(n)s),"
                " array_fill(null::text, %(n)s))",
                {
                    "stream": stream_id,
                    "n": [STORED // 2],
                    "lists": f"[{','.join(['[]'] * len(LISTS))}]",
                },
            )


@frozen
class Honest:
    """A user with a phone and a viewer."""

    relay: RelayProcess
    phone: Peer
    viewer: Peer
    stream_id: str
    token: str

    async def go_on(self, enough: trio.Event) -> None:
        """Frames and alerts arrive, clients are let in, and relay is ready."""
        number = 0
        while not enough.is_set():
            number += 1
            await self.phone.send_frame(b"a frame")
            await self.viewer.receive_type("video-frame")
            sent = time.monotonic()
            await self.phone.send(alert(self.stream_id, str(number)))
            assert (await self.viewer.receive_type("alert"))["message"] == str(number)
            assert time.monotonic() - sent < MAX_DELAY
            async with login(self.relay, self.token):
                pass
            ready = await self.relay.get("/ready")
            assert ready.status == 200, ready.json()
            with trio.move_on_after(0.2):
                await enough.wait()


@pytest.mark.slow
async def test_live_alerts_and_all_else_go_on_beside_the_heaviest_alerts(
    postgres_url: str,
) -> None:
    accounts, mine, theirs = Accounts(postgres_url), new_stream_id(), new_stream_id()
    token, mallory = accounts.session("honest"), accounts.session("mallory")
    with start_relay(database_url=postgres_url) as relay:
        async with (
            login(relay, token) as phone,
            login(relay, token) as viewer,
            login(relay, mallory, msgpack=True) as attacker,
        ):
            await phone.register(mine)
            await viewer.subscribe(mine)
            async with login(relay, mallory) as owner:
                await owner.register(theirs)
            honest = Honest(relay, phone, viewer, mine, token)
            fill = partial(store_heavy_alerts, postgres_url, theirs)
            for attack in (partial(send_heavy_alerts, attacker, theirs), in_thread(fill)):
                enough = trio.Event()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(honest.go_on, enough)
                    await attack()
                    enough.set()
            # The dispatch has passed all of them.
            await phone.send(alert(mine, "at last"))
            while (await viewer.receive_type("alert"))["message"] != "at last":
                pass
            [(stored,)] = accounts.execute("select count(*) from relay.alerts")
            assert stored > STORED
            assert (await relay.get("/ready")).json()["alerts"] == "ok"
        assert "Traceback" not in relay.log


def in_thread(work: Callable[[], None]) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        await trio.to_thread.run_sync(work)

    return run
