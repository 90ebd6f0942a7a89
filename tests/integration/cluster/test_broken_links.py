"""Links between nodes that are cut, shut, or too narrow, as the viewers see it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from attrs import frozen

from tests.integration.accounts import Accounts
from tests.integration.cluster.link_proxy import LinkProxy, free_port, open_link_proxy
from tests.integration.cluster.scene import (
    Phone,
    Viewer,
    lost_on_the_way_to,
    open_scene,
    start_nodes,
)
from tests.integration.peers import new_stream_id
from tests.integration.relay_process import RelayProcess, start_relay, within

GRACE = ("--offline-grace", "2")


@frozen
class Place:
    origin: RelayProcess
    proxy: LinkProxy
    edge: RelayProcess


@asynccontextmanager
async def origin_behind_proxy(database_url: str) -> AsyncIterator[Place]:
    """A node that others reach through a proxy, and another one."""
    bound, advertised = free_port(), free_port()
    async with open_link_proxy(advertised, bound) as proxy:
        with (
            start_relay(
                *("--cluster-bind", f"127.0.0.1:{bound}", *GRACE),
                *("--cluster-advertise", f"127.0.0.1:{advertised}"),
                database_url=database_url,
            ) as origin,
            start_nodes(database_url, 1, *GRACE) as (edge,),
        ):
            yield Place(origin, proxy, edge)


async def test_a_link_that_is_cut_is_opened_again_at_once(
    database_url: str, accounts: Accounts
) -> None:
    async with origin_behind_proxy(database_url) as place, open_scene(accounts) as scene:
        await scene.phone(place.origin)
        here, there = await scene.viewer(place.origin), await scene.viewer(place.edge)
        await there.see(5)
        for _ in range(3):
            await trio.sleep(1.1)
            place.proxy.cut()
            await there.see(3)
        here.check_noticed_nothing()
        there.check_noticed_nothing(gap=50)
        assert place.proxy.opened == 4


@pytest.mark.slow
async def test_what_viewers_elsewhere_miss_while_a_link_is_cut_is_counted_as_lost(
    database_url: str, accounts: Accounts
) -> None:
    async with origin_behind_proxy(database_url) as place, open_scene(accounts) as scene:
        await scene.phone(place.origin)
        there = await scene.viewer(place.edge)
        await there.see(5)
        for _ in range(3):
            place.proxy.shut = True
            place.proxy.cut()
            await trio.sleep(0.5)
            place.proxy.shut = False
            await there.see(20)
        there.check_noticed_nothing(gap=100)
        assert there.missed >= 20
        assert await lost_on_the_way_to(place.edge) == there.missed


@pytest.mark.slow
async def test_a_node_that_cannot_be_reached_has_no_streams_until_it_can(
    database_url: str, accounts: Accounts
) -> None:
    async with origin_behind_proxy(database_url) as place, open_scene(accounts) as scene:
        phone = await scene.phone(place.origin)
        here, there = await scene.viewer(place.origin), await scene.viewer(place.edge)
        await there.see(5)
        place.proxy.shut = True
        place.proxy.cut()
        await there.until_status("offline")
        await trio.sleep(3)
        assert there.statuses[-1] == ("offline", 0)
        newcomer = await scene.viewer(place.edge)
        place.proxy.shut = False
        async with within(5):
            await there.see()
        await newcomer.see(3)
        assert newcomer.statuses == [("offline", 0), ("streaming", phone.epoch)]
        here.check_noticed_nothing()
        there.check_order()
        assert there.statuses[-1] == ("streaming", phone.epoch)
        assert "cluster: a node cannot be reached" in place.edge.log


@pytest.mark.slow
async def test_a_link_that_takes_a_quarter_keeps_its_frames_fresh(
    database_url: str, accounts: Accounts
) -> None:
    streams, size, pause = 8, 65_536, 0.1
    async with origin_behind_proxy(database_url) as place, open_scene(accounts) as scene:
        place.proxy.rate = streams * size / pause / 4
        phones: list[Phone] = []
        here: list[Viewer] = []
        there: list[Viewer] = []
        for _ in range(streams):
            scene.stream_id = new_stream_id()
            peer = await scene.log_in(place.origin, msgpack=True)
            phones.append(await scene.phone(place.origin, peer=peer, size=size, pause=pause))
            here.append(await scene.viewer(place.origin, msgpack=True))
            there.append(await scene.viewer(place.edge, msgpack=True))
        await trio.sleep(1.5)
        since = trio.current_time()
        await trio.sleep(3)
        ages = ages_of(phones, there, since)
        assert ages[-1] < 1  # they would be 3 s old if nothing gave way
        assert len(ages) >= 0.1 * len(ages_of(phones, here, since))
        for viewer in there:
            viewer.check_order()
        for viewer in here:
            viewer.check_noticed_nothing()
            assert viewer.frames[-1].at > since + 2


def ages_of(phones: list[Phone], viewers: list[Viewer], since: float) -> list[float]:
    """How old frames were that came behind a moment, sorted."""
    return sorted(
        seen.at - phone.sent[seen.number]
        for phone, viewer in zip(phones, viewers, strict=True)
        for seen in viewer.frames
        if seen.at > since
    )
