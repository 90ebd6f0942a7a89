"""What breaks between nodes that carry streams, and what their viewers see of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import trio

from tests.integration.accounts import Accounts
from tests.integration.cluster.scene import (
    Viewer,
    lost_on_the_way_to,
    node_id_of,
    open_scene,
    row_of,
    start_nodes,
    until_row,
)
from tests.integration.peers import Peer, new_stream_id
from tests.integration.relay_process import within

LEAVES_SOON = ("--offline-grace", "1")


async def test_a_stream_of_a_node_that_is_killed_begins_anew_where_its_phone_comes_back(
    database_url: str, accounts: Accounts
) -> None:
    with start_nodes(
        database_url,
        3,
        *LEAVES_SOON,
    ) as nodes:
        async with open_scene(accounts) as scene:
            phone = await scene.phone(nodes[0])
            viewers = [await scene.viewer(node) for node in nodes[1:]]
            for viewer in viewers:
                await viewer.see(5)
            os.kill(nodes[0].pid, signal.SIGKILL)
            await phone.until_closed()
            newer = await scene.phone(nodes[1])
            assert newer.epoch > phone.epoch
            async with within(1):
                for viewer in viewers:
                    seen = await viewer.see_number(newer.first)
                    assert seen.epoch == newer.epoch
            for viewer in viewers:
                await viewer.see(3)
                viewer.check_order()
            row = row_of(accounts, scene.stream_id)
            assert row is not None
            assert row[0] == node_id_of(nodes[1])


@pytest.mark.slow
async def test_an_edge_that_stops_for_a_while_disturbs_nobody_else(
    database_url: str, accounts: Accounts
) -> None:
    with start_nodes(database_url, 3, *LEAVES_SOON) as nodes:
        async with open_scene(accounts) as scene:
            phone = await scene.phone(nodes[0], size=20_000)
            here, there, stopped = [await scene.viewer(node) for node in nodes]
            await stopped.see(5)
            os.kill(nodes[2].pid, signal.SIGSTOP)
            await trio.sleep(8)
            os.kill(nodes[2].pid, signal.SIGCONT)
            async with within(2):
                await stopped.see_number(max(phone.sent))
            await stopped.see(5)
            for viewer in (here, there):
                viewer.check_noticed_nothing()
                pauses = [after.at - before.at for before, after in pairwise(viewer.frames)]
                assert max(pauses) < 4
            stopped.check_order()
            dropped = (await nodes[2].stats())["frames_to_consumers"]["dropped"]
            lost = await lost_on_the_way_to(nodes[2])
            assert lost > 100
            assert stopped.missed == lost + sum(dropped.values())


@pytest.mark.slow
async def test_an_origin_that_stops_for_a_while_is_offline_elsewhere_until_it_goes_on(
    database_url: str, accounts: Accounts
) -> None:
    with start_nodes(database_url, 2, *LEAVES_SOON) as nodes:
        async with open_scene(accounts) as scene:
            phone = await scene.phone(nodes[0])
            viewer = await scene.viewer(nodes[1])
            await viewer.see(5)
            os.kill(nodes[0].pid, signal.SIGSTOP)
            await viewer.until_status("offline")
            os.kill(nodes[0].pid, signal.SIGCONT)
            async with within(6):
                await viewer.see_number(max(phone.sent))
            await viewer.see(5)
            viewer.check_order()
            assert viewer.statuses[-2:] == [("offline", 0), ("streaming", phone.epoch)]


@pytest.mark.slow
async def test_nobody_notices_while_the_database_is_away(
    database_url: str, accounts: Accounts, away: Callable[[], Any]
) -> None:
    with start_nodes(database_url, 3, *LEAVES_SOON) as nodes:
        async with open_scene(accounts) as scene:
            await scene.phone(nodes[0])
            viewers = [await scene.viewer(node) for node in nodes[:2]]
            for viewer in viewers:
                await viewer.see(3)
            async with away():
                await trio.sleep(3)
            accounts.execute("truncate relay.live_streams, relay.nodes")
            async with within(5):
                await until_row(accounts, scene.stream_id, lambda row: row is not None)
            newcomer = await scene.viewer(nodes[2])
            async with within(2):
                await newcomer.see(3)
            for viewer in viewers:
                await viewer.see(3)
                viewer.check_noticed_nothing()


@pytest.mark.slow
async def test_nobody_notices_that_the_tables_were_emptied(
    database_url: str, accounts: Accounts
) -> None:
    with start_nodes(database_url, 3, *LEAVES_SOON) as nodes:
        async with open_scene(accounts) as scene:
            await scene.phone(nodes[0])
            viewers = [await scene.viewer(node) for node in nodes[:2]]
            for viewer in viewers:
                await viewer.see(3)
            accounts.execute("truncate relay.live_streams, relay.nodes")
            newcomer = await scene.viewer(nodes[2])
            async with within(5):
                await newcomer.see(3)
            for viewer in viewers:
                await viewer.see(3)
                viewer.check_noticed_nothing()


@pytest.mark.slow
async def test_what_a_killed_node_had_is_offline_and_forgotten_before_long(
    database_url: str, accounts: Accounts
) -> None:
    with start_nodes(database_url, 2, *LEAVES_SOON) as nodes:
        async with open_scene(accounts) as scene:
            await scene.phone(nodes[0])
            viewer = await scene.viewer(nodes[1])
            await viewer.see(3)
            dead = node_id_of(nodes[0])
            os.kill(nodes[0].pid, signal.SIGKILL)
            await viewer.until_status("offline")
            statuses = [*viewer.statuses]
            await until_row(accounts, scene.stream_id, lambda row: row is None)
            assert viewer.statuses == statuses
            assert not accounts.execute("select from relay.nodes where node_id = %s", dead)


@pytest.mark.slow
async def test_all_streams_of_a_killed_node_go_on_where_their_phones_come_back(
    database_url: str, accounts: Accounts
) -> None:
    with start_nodes(database_url, 3, *LEAVES_SOON) as nodes:
        async with open_scene(accounts) as scene:
            ids = [new_stream_id() for _ in range(30)]
            viewers: list[Viewer] = []
            for scene.stream_id in ids:
                await scene.phone(nodes[0], pause=0.1)
                viewers.append(await scene.viewer(nodes[1 + len(viewers) % 2]))
            for viewer in viewers:
                await viewer.see(2)
            peers = [await scene.log_in(nodes[1 + number % 2]) for number in range(len(ids))]
            os.kill(nodes[0].pid, signal.SIGKILL)
            firsts: dict[str, int] = {}

            async def come_back(peer: Peer, stream_id: str) -> None:
                phone = await scene.phone(nodes[1], peer=peer, stream_id=stream_id, pause=0.1)
                firsts[stream_id] = phone.first

            async with trio.open_nursery() as nursery:
                for peer, stream_id in zip(peers, ids, strict=True):
                    nursery.start_soon(come_back, peer, stream_id)
            async with within(1):
                for viewer, stream_id in zip(viewers, ids, strict=True):
                    await viewer.see_number(firsts[stream_id])
            for viewer in viewers:
                viewer.check_order()
