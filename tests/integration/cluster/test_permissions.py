"""What users and observers are told at a node of streams that phones have at others."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import trio

from tests.integration.accounts import Accounts
from tests.integration.cluster.scene import open_scene, start_nodes
from tests.integration.peers import Peer, new_stream_id
from tests.integration.relay_process import RelayProcess, until

MOST = 3
SUPERSEDED = 4502


@pytest.fixture(scope="module")
def nodes(database_url: str) -> Iterator[list[RelayProcess]]:
    with start_nodes(
        database_url, 2, "--offline-grace", "0.5", "--max-streams-per-user", str(MOST)
    ) as nodes:
        yield nodes


async def status_of(peer: Peer, stream_id: str, *, but: str = "") -> str:
    """The next status of a stream, but for one that others may come before."""
    while True:
        message = await peer.receive_type("status")
        if message["streamId"] == stream_id and message["status"] != but:
            return str(message["status"])


async def listed(peer: Peer) -> dict[str, str]:
    reply = await peer.ask({"type": "streams"})
    return {each["streamId"]: each["status"] for each in reply["streams"]}


async def test_an_observer_hears_of_streams_of_other_nodes(
    nodes: list[RelayProcess], accounts: Accounts
) -> None:
    async with open_scene(accounts) as scene:
        observer = await scene.log_in(nodes[1])
        stranger = await scene.log_in(nodes[1], accounts.session("bob"))
        assert scene.stream_id not in await listed(observer)
        assert await listed(stranger) == {}
        phone = await scene.phone(nodes[0])
        assert await status_of(observer, scene.stream_id, but="online") == "streaming"
        assert (await listed(observer))[scene.stream_id] == "streaming"
        await phone.lose_radio()
        assert await status_of(observer, scene.stream_id) == "offline"
        assert scene.stream_id not in await listed(observer)
        assert await listed(stranger) == {}
        assert not [each for each in stranger.passed_over if each["type"] == "status"]


async def test_all_nodes_list_the_streams_of_all_over_http(
    nodes: list[RelayProcess], accounts: Accounts
) -> None:
    async with open_scene(accounts, token=accounts.session("dora")) as scene:
        both = {new_stream_id(): "streaming", new_stream_id(): "streaming"}
        for node, scene.stream_id in zip(nodes, both, strict=True):
            await scene.phone(node)
        headers = {"Authorization": f"Bearer {scene.token}"}

        async def lists_both(node: RelayProcess) -> bool:
            answer = await node.get("/streams", headers=headers)
            return {each["streamId"]: each["status"] for each in answer.json()["streams"]} == both

        for node in nodes:
            await until(partial(lists_both, node))


async def test_a_user_has_no_more_streams_at_all_nodes_than_at_one(
    nodes: list[RelayProcess], accounts: Accounts
) -> None:
    token = accounts.session("max")
    async with open_scene(accounts, token=token) as scene:
        peers = [await scene.log_in(nodes[number % 2]) for number in range(MOST + 4)]
        codes: list[str] = []

        async def register(peer: Peer) -> None:
            reply = await peer.ask({"type": "register", "streamId": new_stream_id()})
            codes.append(reply["code"])

        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(register, peer)
        assert codes.count("REGISTERED") == MOST
        assert codes.count("TOO_MANY_CONNECTIONS") == 4


async def test_a_camera_produces_at_any_node_in_the_name_of_its_user(
    nodes: list[RelayProcess], accounts: Accounts
) -> None:
    async with open_scene(accounts) as scene:
        user_id = f"owner of {scene.stream_id}"
        owner = accounts.session(user_id)
        prefix = scene.stream_id[:-1] + "*"
        camera = accounts.service(alerts=False, produce=[prefix], user_id=user_id)
        viewer = await scene.viewer(nodes[1], owner)
        first = await scene.phone(nodes[0], peer=await scene.log_in(nodes[0], camera))
        await viewer.see(3)
        refused = await (await scene.log_in(nodes[1], accounts.session("bob"))).ask(
            {"type": "register", "streamId": scene.stream_id}
        )
        assert refused["code"] == "UNAUTHORIZED"
        await scene.phone(nodes[1], peer=await scene.log_in(nodes[1], camera))
        await first.until_closed()
        assert first.closed is not None
        assert first.closed[0] == SUPERSEDED
        for number in range(MOST - 1):  # the user's own streams count with those of the camera
            await scene.phone(
                nodes[0],
                peer=await scene.log_in(nodes[0], owner),
                stream_id=f"own-{number}-{scene.stream_id}",
            )
        another = {"type": "register", "streamId": f"{scene.stream_id[:-1]}-another"}
        refused = await (await scene.log_in(nodes[0], camera)).ask(another)
        assert refused["code"] == "TOO_MANY_CONNECTIONS"


async def test_grants_reach_viewers_and_observers_at_other_nodes(
    nodes: list[RelayProcess], accounts: Accounts
) -> None:
    async with open_scene(accounts) as scene:
        await scene.phone(nodes[0])
        token = accounts.session("carl")
        viewer = await scene.viewer(nodes[1], token)
        observer = await scene.log_in(nodes[1], token)
        assert await listed(observer) == {}
        assert viewer.statuses == [("offline", 0)]
        for _ in range(2):
            accounts.execute(
                "insert into relay.grants (user_id, stream_id) values (%s, %s)",
                "carl",
                scene.stream_id,
            )
            await viewer.see(3)
            assert await status_of(observer, scene.stream_id, but="online") == "streaming"
            assert scene.stream_id in await listed(observer)
            accounts.execute("delete from relay.grants where user_id = %s", "carl")
            await viewer.until_status("offline")
            assert await status_of(observer, scene.stream_id) == "offline"
            assert await listed(observer) == {}
            seen = len(viewer.frames)
            await trio.sleep(0.3)
            assert len(viewer.frames) == seen


async def test_nothing_crosses_for_a_viewer_who_may_not_see_the_stream(
    nodes: list[RelayProcess], accounts: Accounts
) -> None:
    async with open_scene(accounts) as scene:
        phone = await scene.phone(nodes[0])
        await scene.viewer(nodes[1], accounts.session("bob"))
        await trio.sleep(0.5)
        assert {each["consumers"] for each in phone.statuses} == {0}


async def test_the_first_viewer_elsewhere_is_told_to_the_phone_and_the_last_one_that_leaves(
    nodes: list[RelayProcess], accounts: Accounts
) -> None:
    async with open_scene(accounts) as scene:
        phone = await scene.phone(nodes[0])
        first, second = await scene.viewer(nodes[1]), await scene.viewer(nodes[1])
        await phone.until_watched_by(2)
        for viewer in (first, second):
            await viewer.peer.send({"type": "unsubscribe", "streamId": scene.stream_id})
        await phone.until_watched_by(0)
        again = {"type": "subscribe", "streamId": scene.stream_id, "consumes": ["video-frame"]}
        await first.peer.send(again)
        await phone.until_watched_by(1)
