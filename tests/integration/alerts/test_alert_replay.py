"""Replays of alerts on a real relay, while others write and the dispatch runs beside them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from random import Random
from typing import Any

import pytest
import trio

from tests.integration.accounts import Accounts
from tests.integration.peers import Message, Peer, login, new_stream_id
from tests.integration.relay_process import PATIENCE, RelayProcess

WRITERS, EACH = 3, 100
LARGE = {"a": "x" * 60_000}


def alert(stream_id: str, **fields: Any) -> Message:
    return {"type": "alert", "streamId": stream_id, "severity": "low", "message": "m", **fields}


async def read_page(viewer: Peer, seen: list[int], **request: Any) -> bool:
    """Ask for a page and add all alerts that come until its end; returns whether there is more."""
    await viewer.send({"type": "alerts-since", **request})
    while (message := await viewer.receive())["type"] != "success":
        assert message["type"] in ("alert", "status"), message
        if message["type"] == "alert":
            seen.append(message["alertId"])
    more: bool = message["more"]
    return more


async def read_until(viewer: Peer, seen: list[int], enough: Callable[[], bool]) -> None:
    while not enough():
        seen.append((await viewer.receive_type("alert"))["alertId"])


@pytest.mark.parametrize("everything", [pytest.param(False, marks=pytest.mark.slow), True])
async def test_pages_and_live_alerts_are_all_there_in_order_and_once_while_others_write(
    relay: RelayProcess, accounts: Accounts, everything: bool
) -> None:
    random = Random(str(everything))
    # A user of its own, who sees nothing else.
    token, service = accounts.session(new_stream_id()), accounts.service("*")
    streams = [new_stream_id(), new_stream_id()]
    watched = streams if everything else streams[:1]
    written: dict[str, list[int]] = {stream_id: [] for stream_id in streams}
    done = trio.Event()

    async def write(number: int) -> None:
        async with login(relay, service, msgpack=bool(number % 2)) as writer:
            for _ in range(EACH):
                stream_id = random.choice(streams)
                reply = await writer.ask(alert(stream_id))
                assert reply["code"] == "ALERT_ACCEPTED"
                written[stream_id].append(reply["alertId"])

    async def read(number: int) -> None:
        async with login(relay, token, msgpack=number % 3 == 0) as viewer:
            request = {"type": "subscribe", "consumes": ["alert"]}
            for stream_id in watched:
                assert (await viewer.ask({**request, "streamId": stream_id}))["epoch"] >= 0
            scope = {} if everything else {"streamId": watched[0]}
            seen: list[int] = []
            limit = random.choice([1, 3, 50])
            more = await read_page(viewer, seen, limit=limit, **scope)
            # What came live between the subscription and the first page came again with it.
            while len(seen) > 1 and seen[0] >= min(seen[1:]):
                del seen[0]
            while more:
                limit = random.choice([7, 50])
                more = await read_page(viewer, seen, after=seen[-1], limit=limit, **scope)
            await done.wait()
            expected = sorted(each for stream_id in watched for each in written[stream_id])
            with trio.move_on_after(PATIENCE):
                await read_until(viewer, seen, lambda: len(seen) >= len(expected))
            assert seen == expected

    async with login(relay, token) as phone, login(relay, token) as other:
        for peer, stream_id in zip((phone, other), streams, strict=True):
            await peer.ask({"type": "register", "streamId": stream_id, "consumes": []})
        async with trio.open_nursery() as readers:
            async with trio.open_nursery() as writers:
                for number in range(WRITERS):
                    writers.start_soon(write, number)
                for number in range(6):
                    readers.start_soon(read, number)
                    await trio.sleep(0.05)
            done.set()


async def test_a_history_of_large_alerts_is_read_page_by_page(
    relay: RelayProcess, accounts: Accounts
) -> None:
    token, stream_id = accounts.session(), new_stream_id()
    seen: list[int] = []
    async with login(relay, token) as phone, login(relay, accounts.service("*")) as service:
        await phone.ask({"type": "register", "streamId": stream_id, "consumes": []})
        sent = [
            (await service.ask(alert(stream_id, metadata=LARGE)))["alertId"] for _ in range(100)
        ]
        async with login(relay, token) as viewer:
            more = await read_page(viewer, seen, streamId=stream_id)
            assert more
            while more:
                more = await read_page(viewer, seen, streamId=stream_id, after=seen[-1])
    assert seen == sent


async def test_a_viewer_that_reads_gets_all_that_many_services_send_at_once(
    relay: RelayProcess, accounts: Accounts
) -> None:
    token, service, stream_id = accounts.session(), accounts.service("*"), new_stream_id()
    async with AsyncExitStack() as stack:
        phone = await stack.enter_async_context(login(relay, token))
        await phone.ask({"type": "register", "streamId": stream_id, "consumes": []})
        viewer = await stack.enter_async_context(login(relay, token))
        await viewer.subscribe(stream_id)
        services = [await stack.enter_async_context(login(relay, service)) for _ in range(150)]
        seen: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_until, viewer, seen, lambda: len(seen) == len(services))
            for each in services:
                nursery.start_soon(each.ask, alert(stream_id, metadata=LARGE))
    assert seen == sorted(set(seen))
