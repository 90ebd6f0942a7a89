"""Phones that go from one node to another, while viewers watch at all of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import trio

from tests.integration.accounts import Accounts
from tests.integration.cluster.scene import (
    node_id_of,
    open_scene,
    row_of,
    start_nodes,
    until_row,
)
from tests.integration.relay_process import RelayProcess, within

SUPERSEDED = (4502, "superseded by a newer connection")


@pytest.fixture(scope="module")
def nodes(database_url: str) -> Iterator[list[RelayProcess]]:
    with start_nodes(database_url) as nodes:
        yield nodes


async def test_viewers_notice_nothing_when_the_phone_goes_to_other_nodes_and_back(
    nodes: list[RelayProcess], accounts: Accounts
) -> None:
    a, b, c = nodes
    async with open_scene(accounts) as scene:
        phone = await scene.phone(a)
        viewers = [await scene.viewer(node) for node in nodes]
        for viewer in viewers:
            await viewer.see(5)
        statuses = [[*viewer.statuses] for viewer in viewers]
        for node in (b, a, c):
            newer = await scene.phone(node)
            assert newer.epoch == phone.epoch
            for viewer in viewers:
                await viewer.see_number(newer.first + 5)
            await phone.until_closed()
            assert phone.closed == SUPERSEDED
            phone = newer
            row = row_of(accounts, scene.stream_id)
            assert row is not None
            assert row[0] == node_id_of(node)
        for viewer in viewers:
            # A node that has to open a link to the new one misses what is sent meanwhile.
            viewer.check_noticed_nothing(gap=50)
        assert [viewer.statuses for viewer in viewers] == statuses


async def test_viewers_at_the_node_that_takes_a_stream_over_miss_no_frame(
    nodes: list[RelayProcess], accounts: Accounts
) -> None:
    a, b, _ = nodes
    async with open_scene(accounts) as scene:
        phone = await scene.phone(a, pause=0.005)
        viewer = await scene.viewer(b)
        await viewer.see(5)
        newer = await scene.phone(b)
        await viewer.see_number(newer.first + 5)
        await phone.until_closed()
        viewer.check_noticed_nothing(gap=1)


async def test_the_count_of_viewers_follows_the_phone(
    nodes: list[RelayProcess], accounts: Accounts
) -> None:
    async with open_scene(accounts) as scene:
        phone = await scene.phone(nodes[0])
        for node in nodes:
            await scene.viewer(node)
        await phone.until_watched_by(3)
        for node in (nodes[1], nodes[0], nodes[2]):
            phone = await scene.phone(node)
            await phone.until_watched_by(3)


async def test_a_connection_that_was_accepted_earlier_does_not_get_a_stream_back(
    nodes: list[RelayProcess], accounts: Accounts
) -> None:
    a, b, c = nodes
    async with open_scene(accounts) as scene:
        early = await scene.log_in(a)
        earlier = await scene.log_in(c)
        phone = await scene.phone(b)
        viewer = await scene.viewer(a)
        await viewer.see()
        for peer in (early, earlier):
            await peer.send({"type": "register", "streamId": scene.stream_id, "id": 1})
            _, close = await peer.hear_end()
            assert close == SUPERSEDED
        await viewer.see(10)
        viewer.check_noticed_nothing()
        assert phone.closed is None


@pytest.mark.parametrize("at", [0, 1])
async def test_the_stream_of_another_user_is_taken_on_every_node(
    nodes: list[RelayProcess], accounts: Accounts, at: int
) -> None:
    async with open_scene(accounts) as scene:
        phone = await scene.phone(nodes[0])
        viewer = await scene.viewer(nodes[1])
        stranger = await scene.log_in(nodes[at], accounts.session("bob"))
        reply = await stranger.ask({"type": "register", "streamId": scene.stream_id})
        assert reply["code"] == "UNAUTHORIZED"
        await viewer.see(5)
        viewer.check_noticed_nothing()
        assert phone.closed is None


@pytest.mark.parametrize("back_at", [0, 1, 2])
async def test_a_phone_whose_radio_was_lost_goes_on_wherever_it_comes_back(
    nodes: list[RelayProcess], accounts: Accounts, back_at: int
) -> None:
    async with open_scene(accounts) as scene:
        phone = await scene.phone(nodes[0])
        viewers = [await scene.viewer(node) for node in nodes]
        for viewer in viewers:
            await viewer.see(3)
        await phone.lose_radio()
        await trio.sleep(1)
        newer = await scene.phone(nodes[back_at])
        assert newer.epoch == phone.epoch
        for viewer in viewers:
            await viewer.see_number(newer.first + 3)
            viewer.check_noticed_nothing(gap=50)
            assert viewer.frames[-1].epoch == phone.epoch


async def test_a_phone_that_does_not_come_back_is_offline_everywhere_after_the_grace(
    nodes: list[RelayProcess], accounts: Accounts
) -> None:
    async with open_scene(accounts) as scene:
        phone = await scene.phone(nodes[0])
        viewers = [await scene.viewer(node) for node in nodes]
        for viewer in viewers:
            await viewer.see(3)
        await phone.lose_radio()
        for viewer in viewers:
            await viewer.until_status("offline")
        await until_row(accounts, scene.stream_id, lambda row: row is None)
        newer = await scene.phone(nodes[1])
        assert newer.epoch > phone.epoch
        for viewer in viewers:
            await viewer.see_number(newer.first)
            viewer.check_order()
            assert viewer.frames[-1].epoch == newer.epoch


@pytest.mark.slow
async def test_a_stream_of_a_node_that_drains_goes_on_at_another(
    database_url: str, accounts: Accounts
) -> None:
    with start_nodes(database_url) as nodes:
        async with open_scene(accounts) as scene:
            phone = await scene.phone(nodes[0])
            viewers = [await scene.viewer(node) for node in nodes[1:]]
            for viewer in viewers:
                await viewer.see(3)
            nodes[0].signal(signal.SIGTERM)
            await phone.until_closed()
            assert phone.closed is not None
            assert phone.closed[0] == 4012
            newer = await scene.phone(nodes[1])
            assert newer.epoch == phone.epoch
            for viewer in viewers:
                await viewer.see_number(newer.first + 3)
                viewer.check_noticed_nothing(gap=50)
            async with within(5):
                assert await nodes[0].ended() == 0
            for viewer in viewers:
                await viewer.see(3)
                viewer.check_noticed_nothing(gap=50)


@pytest.mark.slow
async def test_an_origin_that_was_stopped_gives_up_what_was_taken_over_meanwhile(
    database_url: str, accounts: Accounts
) -> None:
    with start_nodes(database_url, 3, "--offline-grace", "1") as nodes:
        async with open_scene(accounts) as scene:
            phone = await scene.phone(nodes[0])
            viewers = [await scene.viewer(node) for node in nodes]
            for viewer in viewers:
                await viewer.see(5)
            os.kill(nodes[0].pid, signal.SIGSTOP)
            newer = await scene.phone(nodes[1])
            assert newer.epoch > phone.epoch
            for viewer in viewers[1:]:
                async with within(3):
                    seen = await viewer.see_number(newer.first)
                assert seen.epoch == newer.epoch
            os.kill(nodes[0].pid, signal.SIGCONT)
            async with within(5):
                await phone.until_closed()
                await viewers[0].until(lambda: viewers[0].epoch == newer.epoch)
                await viewers[0].see(5)
            assert phone.closed is not None
            assert phone.closed[0] == 4502
            for viewer in viewers:
                await viewer.see(5)
                assert viewer.frames[-1].epoch == newer.epoch
                epochs = [each.epoch for each in viewer.frames]
                assert epochs == sorted(epochs)
            for viewer in viewers[1:]:
                viewer.check_order()
