"""Nodes that hear no notifications, or speak another version of the link."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from psycopg.conninfo import make_conninfo

from tests.integration.accounts import Accounts
from tests.integration.cluster.scene import CLUSTER, open_scene, start_nodes
from tests.integration.postgres import test_pgbouncer
from tests.integration.relay_process import start_relay, within

GRACE = ("--offline-grace", "1")
PROGRAM = (
    "import relay.cluster.streams.edge as edge, relay.cluster.streams.origin as origin, sys;"
    "edge.LINK_PROTOCOL_VERSION = origin.LINK_PROTOCOL_VERSION = 999;"
    "from relay.cli.main import main; sys.exit(main(sys.argv[1:]))"
)
OTHER_VERSION = (sys.executable, "-c", PROGRAM, "serve")
"""A relay whose links are of another version."""


@pytest.fixture
def bouncer_url(folder: Path, database_url: str) -> Iterator[str]:
    folder.chmod(0o777)
    test_pgbouncer.write_settings(folder, database_url)
    with test_pgbouncer.run_pgbouncer(folder):
        yield make_conninfo(database_url, host=str(folder), port=6432)


@pytest.mark.skipif(test_pgbouncer.PROGRAM is None, reason="pgbouncer is not installed")
async def test_viewers_get_later_streams_of_other_nodes_without_notifications(
    bouncer_url: str, accounts: Accounts
) -> None:
    with start_nodes(bouncer_url, 2, *GRACE) as nodes:
        async with open_scene(accounts) as scene:
            there = await scene.viewer(nodes[1])
            assert there.statuses == [("offline", 0)]
            await trio.sleep(0.5)
            phone = await scene.phone(nodes[0])
            async with within(3):
                await there.see()
            newer = await scene.phone(nodes[1])
            assert newer.epoch == phone.epoch
            here = await scene.viewer(nodes[0])
            await here.see(5)
            await there.see(5)
            there.check_noticed_nothing(gap=10)
            await newer.lose_radio()
            await there.until_status("offline")
            await here.until_status("offline")


@pytest.mark.parametrize("odd", ["edge", pytest.param("origin", marks=pytest.mark.slow)])
async def test_nodes_of_another_version_are_not_talked_to(
    database_url: str, accounts: Accounts, odd: str
) -> None:
    with (
        start_relay(*CLUSTER, *GRACE, database_url=database_url) as usual,
        start_relay(*CLUSTER, *GRACE, database_url=database_url, command=OTHER_VERSION) as other,
    ):
        origin, edge = (usual, other) if odd == "edge" else (other, usual)
        async with open_scene(accounts) as scene:
            await scene.phone(origin)
            here, there = await scene.viewer(origin), await scene.viewer(edge)
            await here.see()
            await trio.sleep(5)
            await here.see()
            assert there.statuses[-1] == ("offline", 0)
            assert not there.frames
            here.check_noticed_nothing()
            assert edge.log.count("another version") == 1
            assert origin.log.count("another version") <= 1
            assert "broke the protocol" not in origin.log
