"""What operators see of two relays with one PostgreSQL, and what they do to them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from relay.protocol.reports import FiguresReport
from relay.top.answers import read
from tests.integration.accounts import Accounts
from tests.integration.peers import Peer, login, new_stream_id
from tests.integration.relay_process import (
    PATIENCE,
    RelayProcess,
    Response,
    run_relay,
    start_relay,
    until,
)

CLUSTER = ("--cluster-bind", "127.0.0.1:0")
NO_GRACE = ("--offline-grace", "0.1")
"""For relays that end in the test: they stay for so long until others have taken their streams."""
Nodes = tuple[RelayProcess, RelayProcess]


@pytest.fixture(scope="module")
def nodes(database_url: str) -> Iterator[Nodes]:
    with (
        start_relay(*CLUSTER, *NO_GRACE, database_url=database_url) as first,
        start_relay(*CLUSTER, *NO_GRACE, database_url=database_url) as second,
    ):
        trio.run(_until_acquainted, first, Accounts(database_url).service(operate=True))
        yield first, second


async def _until_acquainted(relay: RelayProcess, token: str) -> None:
    """Wait until a node knows of the other."""

    async def knows() -> bool:
        report = await figures(relay, token, "?nodes=all")
        return len(report["nodes"]) == 2

    await until(knows)


@pytest.fixture
def accounts(database_url: str) -> Accounts:
    return Accounts(database_url)


@pytest.fixture
def operator(accounts: Accounts) -> str:
    return accounts.service(operate=True)


async def figures(relay: RelayProcess, token: str, query: str = "") -> dict[str, Any]:
    answer = await relay.get(f"/figures{query}", headers={"Authorization": f"Bearer {token}"})
    assert answer.status == 200
    read(answer.body, FiguresReport, "/figures")
    found: dict[str, Any] = answer.json()
    return found


async def node_id(relay: RelayProcess, token: str) -> str:
    (node,) = (await figures(relay, token))["nodes"]
    return str(node["node"])


def of_stream(report: dict[str, Any], stream_id: str) -> list[dict[str, Any]]:
    return [each for each in report["streams"] if each["streamId"] == stream_id]


@asynccontextmanager
async def watched_stream(
    nodes: Nodes, accounts: Accounts, viewers: int
) -> AsyncIterator[tuple[str, Peer, list[Peer]]]:
    """A phone at the first node and viewers at the second, which have got its first frame."""
    first, second = nodes
    stream_id, token = new_stream_id(), accounts.session()
    async with AsyncExitStack() as stack:
        phone = await stack.enter_async_context(login(first, token))
        await phone.register(stream_id)
        await phone.send_frame(b"first")
        peers = [await stack.enter_async_context(login(second, token)) for _ in range(viewers)]
        for peer in peers:
            await peer.subscribe(stream_id)
            await peer.receive_type("video-frame")
        yield stream_id, phone, peers


async def test_figures_say_where_a_stream_is_produced_and_who_carries_it(
    nodes: Nodes, accounts: Accounts, operator: str
) -> None:
    origin, edge = [await node_id(each, operator) for each in nodes]
    async with watched_stream(nodes, accounts, viewers=2) as (stream_id, phone, viewers):
        for _ in range(4):
            await phone.send_frame(b"another")
            for viewer in viewers:
                await viewer.receive_type("video-frame")

        async def told() -> bool:
            (at_origin,) = of_stream(await figures(nodes[0], operator), stream_id)
            return [each["viewers"] for each in at_origin["edges"]] == [2]

        await until(told)
        (at_origin,) = of_stream(await figures(nodes[0], operator), stream_id)
        (at_edge,) = of_stream(await figures(nodes[1], operator), stream_id)
    assert at_origin["node"] == origin
    assert (at_origin["producer"] is not None, at_origin["consumers"]) == (True, [])
    assert "carriedFrom" not in at_origin
    (hop,) = at_origin["edges"]
    assert (hop["node"], hop["viewers"], hop["dropped"], hop["waiting"]) == (edge, 2, {}, 0)
    assert (hop["frames"], hop["written"]) == (5, 5)
    assert (at_edge["node"], at_edge["carriedFrom"], at_edge["producer"]) == (edge, origin, None)
    assert (at_edge["received"], at_edge["lost"]) == (5, 0)
    assert [each["frames"] for each in at_edge["consumers"]] == [5, 5]
    assert "edges" not in at_edge


async def test_frames_that_cross_are_counted_at_both_ends(nodes: Nodes, accounts: Accounts) -> None:
    before = [await metrics(each) for each in nodes]
    async with watched_stream(nodes, accounts, viewers=1) as (_, phone, (viewer,)):
        for _ in range(9):
            await phone.send_frame(b"another")
            await viewer.receive_type("video-frame")
        now = [await metrics(each) for each in nodes]
    grown = [
        {name: value - then.get(name, 0) for name, value in at.items()}
        for at, then in zip(now, before, strict=True)
    ]
    written = 'relay_hop_frames_total{direction="out",outcome="written"}'
    received = 'relay_hop_frames_total{direction="in",outcome="received"}'
    assert (grown[0][written], grown[0]["relay_hop_age_seconds_count"]) == (10, 10)
    assert (grown[0][received], grown[0]["relay_frames_written_total"]) == (0, 0)
    assert (grown[1][received], grown[1]["relay_frames_written_total"]) == (10, 10)
    assert now[1]["relay_carried_streams"] == 1
    assert now[0]['relay_links{direction="out"}'] == now[1]['relay_links{direction="in"}'] == 1
    assert now[0]['relay_nodes{state="live"}'] == 2


async def metrics(relay: RelayProcess) -> dict[str, float]:
    """The value of each sample, by its name and labels as Prometheus writes them."""
    lines = (await relay.get("/metrics")).body.decode().splitlines()
    samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


async def test_one_node_tells_of_all_and_opens_links_for_that(
    nodes: Nodes, accounts: Accounts, operator: str
) -> None:
    ids = [await node_id(each, operator) for each in nodes]
    token, here, there = accounts.session(), new_stream_id(), new_stream_id()
    async with login(nodes[0], token) as phone, login(nodes[1], token) as other:
        await phone.register(here)
        await other.register(there)
        for relay in nodes:
            report = await figures(relay, operator, "?nodes=all")
            assert [each["node"] for each in of_stream(report, here)] == [ids[0]]
            assert [each["node"] for each in of_stream(report, there)] == [ids[1]]
            asked, other_node = report["nodes"]
            assert {asked["node"], other_node["node"]} == set(ids)
            assert report["silent"] == []
            assert (asked["reaches"], asked["cannotReach"]) == ([other_node["node"]], [])


@pytest.mark.slow
async def test_workers_of_one_machine_are_nodes_and_count_them_once(
    postgres_url: str, tmp_path: Path
) -> None:
    accounts = Accounts(postgres_url)
    operator, token = accounts.service(operate=True), accounts.session()
    with start_relay("--workers", "2", *NO_GRACE, database_url=postgres_url) as relay:

        async def both() -> bool:
            return len((await figures(relay, operator))["nodes"]) == 2

        await until(both)
        async with login(relay, token) as phone, login(relay, token) as viewer:
            stream_id = new_stream_id()
            await phone.register(stream_id)
            await viewer.ask({"type": "streams"})  # else it would go to the worker of its stream
            await viewer.subscribe(stream_id)
            await phone.send_frame(b"picture")
            await viewer.receive_type("video-frame")
            here = of_stream(await figures(relay, operator), stream_id)
            everywhere = of_stream(await figures(relay, operator, "?nodes=all"), stream_id)
        assert len(here) == len(everywhere) == 2
        counted = await metrics(relay)
        assert counted['relay_nodes{state="live"}'] == 2
        assert counted['relay_hop_frames_total{direction="out",outcome="written"}'] == 1
        assert counted['relay_hop_frames_total{direction="in",outcome="received"}'] == 1
        listed = json.loads(await command(accounts, "nodes", "--json"))["nodes"]
        assert len({each["machine"] for each in listed}) == 1
        # A number is enough: the workers of one machine count together.
        code, said = await refused(accounts, "connection", "end", str(10**9))
        assert (code, said) == (2, f"relay: there is no connection {10**9}\n")


async def test_a_node_that_does_not_answer_is_named(nodes: Nodes, operator: str) -> None:
    ids = [await node_id(each, operator) for each in nodes]
    os.kill(nodes[1].pid, signal.SIGSTOP)
    try:
        report = await figures(nodes[0], operator, "?nodes=all")
    finally:
        os.kill(nodes[1].pid, signal.SIGCONT)
    assert report["silent"] == [ids[1]]
    assert [each["node"] for each in report["nodes"]] == [ids[0]]

    async def answers_again() -> bool:
        return not (await figures(nodes[0], operator, "?nodes=all"))["silent"]

    await until(answers_again)


async def test_the_command_line_lists_nodes(
    nodes: Nodes, accounts: Accounts, operator: str, tmp_path: Path
) -> None:
    first, second = [await node_id(each, operator) for each in nodes]
    silent = "insert into relay.nodes values ('gone', 'm', null, null, '', '0.1\x1b', false,"
    accounts.execute(f"{silent} clock_timestamp() - interval '20 seconds')")
    token_file = tmp_path / "token"
    token_file.write_text(operator)
    ask = ("--ask", nodes[0].url, "--token-file", str(token_file))
    try:
        async with login(nodes[0], accounts.session()) as phone:
            await phone.register(new_stream_id())
            listed, asked, as_json = [
                await command(accounts, "nodes", *options)
                for options in ((), ask, (*ask, "--json"))
            ]
    finally:
        accounts.execute("delete from relay.nodes where node_id = 'gone'")
    heading, *lines = listed.splitlines()
    assert heading.split() == ["node", "machine", "address", "version", "seen", "state", "streams"]
    by_node = {line.split()[0]: line for line in lines}
    assert by_node.keys() == {first, second, "gone"}
    assert by_node[first].split()[-2] == "live"
    assert by_node["gone"].split()[-2:] == ["silent", "0"]
    assert "\x1b" not in listed
    found = {each["node"]: each for each in json.loads(as_json)["nodes"]}
    assert [found[each]["answers"] for each in (first, second, "gone")] == [True, True, False]
    assert second in found[first]["reaches"]
    assert found[first]["streams"] >= 1  # earlier tests may have left some for a while
    assert found[second]["address"].startswith("127.0.0.1:")
    assert len(asked.splitlines()) >= len(lines) + 1


def test_one_relay_alone_has_no_nodes_to_list(postgres_url: str) -> None:
    with start_relay(database_url=postgres_url):
        done = run_relay("nodes", database_url=postgres_url)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--cluster-bind HOST:PORT" in done.stderr


async def command(accounts: Accounts, *arguments: str) -> str:
    """What a command prints, which must succeed."""
    run = partial(run_relay, *arguments, database_url=accounts.url)
    done = await trio.to_thread.run_sync(run)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


async def test_top_shows_the_streams_of_all_nodes(
    nodes: Nodes, accounts: Accounts, operator: str, tmp_path: Path
) -> None:
    origin, edge = [(await node_id(each, operator))[:8] for each in nodes]
    (token_file := tmp_path / "token").write_text(operator)
    top = ("top", nodes[0].url, "--once", "--token-file", str(token_file))
    async with watched_stream(nodes, accounts, viewers=1) as (stream_id, _, _):
        one, every = [await command(accounts, *top, *more) for more in ((), ("--nodes", "all"))]
    shown = [line for line in one.splitlines() if line.startswith(stream_id)]
    assert [line.split()[-2:] for line in shown] == [["to", "1"]]
    assert "2 answer" in every
    shown = [line for line in every.splitlines() if line.startswith(stream_id)]
    assert sorted(line.split()[-3:] for line in shown) == sorted(
        [[origin, "to", "1"], [edge, "from", origin]]
    )


async def examined(accounts: Accounts, *options: str) -> dict[str, tuple[str, str]]:
    """The outcome and the words of each check of `relay doctor`."""
    run = partial(run_relay, "doctor", "--json", *options, database_url=accounts.url)
    done = await trio.to_thread.run_sync(run)
    return {
        each["name"]: (each["outcome"], each["said"]) for each in json.loads(done.stdout)["checks"]
    }


async def test_the_doctor_connects_to_all_nodes(
    nodes: Nodes, accounts: Accounts, operator: str
) -> None:
    ids = [await node_id(each, operator) for each in nodes]
    listed = json.loads(await command(accounts, "nodes", "--json"))["nodes"]
    (address,) = [each["address"] for each in listed if each["node"] == ids[0]]
    options = ("--bind", f"127.0.0.1:{nodes[0].port}", "--cluster-bind", address)
    found = await examined(accounts, *options)
    assert found["nodes"][0] == "ok"
    assert found["nodes"][1].startswith("2 nodes on 2 machines, all of version")
    assert found["cluster-port"] == (
        *("ok", f"{address} is in use, and a relay runs here; other relays are told {address}"),
    )
    assert "sockets" not in found
    row = "insert into relay.nodes values ('x', 'm', %s, null, '', '0.0.1', false)"
    try:
        accounts.execute(row, address)
        outcome, said = (await examined(accounts, *options))["nodes"]
        assert (outcome, "of the versions 0.0.1, " in said) == ("warn", True)
        accounts.execute("update relay.nodes set address = '127.0.0.1:1' where node_id = 'x'")
        outcome, said = (await examined(accounts, *options))["nodes"]
        assert (outcome, "cannot connect to 127.0.0.1:1" in said) == ("fail", True)
    finally:
        accounts.execute("delete from relay.nodes where node_id = 'x'")
    alone = await examined(accounts)
    assert not {"nodes", "cluster-port", "sockets"} & alone.keys()


# -- connections

ENDED, REVOKED = (4010, "ended by an operator"), (4501, "session revoked")


async def connection_of(accounts: Accounts, user: str) -> tuple[str, int]:
    """The node and the number of the last connection of a user, as the audit has them."""
    query = (
        "select node, connection from relay.audit where what = 'auth' and user_id = %s"
        " order by audit_id desc"
    )
    with trio.fail_after(PATIENCE):
        while not (rows := accounts.execute(query, user)):  # noqa: ASYNC110 - rows come later
            await trio.sleep(0.05)
    return str(rows[0][0]), int(rows[0][1])


async def is_open(peer: Peer) -> bool:
    return bool((await peer.ask({"type": "streams"}))["code"] == "STREAMS")


async def test_the_connections_of_a_user_end_on_all_nodes(nodes: Nodes, accounts: Accounts) -> None:
    user = f"user-{new_stream_id()}"
    one, other, ann = accounts.sessions([user, user, "ann"])
    async with (
        login(nodes[0], one) as first,
        login(nodes[1], other) as second,
        login(nodes[1], ann) as third,
    ):
        assert await command(accounts, "user", "end", user) == f"ended 2 connections of {user}\n"
        for peer in (first, second):
            assert (await peer.hear_end())[1] == REVOKED
        assert await is_open(third)


async def test_a_connection_of_one_node_ends_and_none_of_another(
    nodes: Nodes, accounts: Accounts, operator: str
) -> None:
    ids = [await node_id(each, operator) for each in nodes]
    users = [f"user-{new_stream_id()}" for _ in nodes]
    tokens = accounts.sessions(users)
    async with login(nodes[0], tokens[0]) as first, login(nodes[1], tokens[1]) as second:
        names = [await connection_of(accounts, each) for each in users]
        assert [node for node, _ in names] == ids
        number = names[1][1]
        wrong = f"{ids[0]}/{10**9}"
        code, said = await refused(accounts, "connection", "end", wrong)
        assert (code, said) == (2, f"relay: there is no connection {10**9} at the node {ids[0]}\n")
        code, said = await refused(accounts, "connection", "end", str(number))
        assert code == 2
        assert f"{ids[0]}/{number}" in said
        assert f"{ids[1]}/{number}" in said
        code, said = await refused(accounts, "connection", "end", f"elsewhere/{number}")
        assert (code, said) == (2, "relay: there is no node elsewhere; `relay nodes` lists them\n")
        await command(accounts, "connection", "end", f"{ids[1][:8]}/{number}")
        assert (await second.hear_end())[1] == ENDED
        assert await is_open(first)
        # With a user, the number is enough.
        await command(accounts, "connection", "end", str(names[0][1]), "--user", users[0])
        assert (await first.hear_end())[1] == ENDED
    (row,) = accounts.execute(
        "select outcome, connection from relay.audit where what = 'end' and node = %s"
        " order by audit_id desc limit 1",
        ids[1],
    )
    assert row == ("succeeded", number)


async def test_one_node_ends_a_connection_of_another_over_http(
    nodes: Nodes, accounts: Accounts, operator: str
) -> None:
    user = f"user-{new_stream_id()}"
    async with login(nodes[1], accounts.session(user)) as peer:
        node, number = await connection_of(accounts, user)

        async def end(**body: object) -> Response:
            return await nodes[0].get(
                "/operate/connections/end",
                "POST",
                headers={"Authorization": f"Bearer {operator}"},
                body=json.dumps(body).encode(),
            )

        answer = await end(connection=10**9, node=node)
        text = f"There is no connection {10**9} of the node {node}"
        assert (answer.status, answer.json()["error"]["message"]) == (404, text)
        assert await is_open(peer)
        answer = await end(connection=number, node=node)
        assert answer.json() == {"connection": number, "node": node, "ended": 1}
        assert (await peer.hear_end())[1] == ENDED
        own = await node_id(nodes[0], operator)
        assert (await end(connection=10**9, node=own)).status == 404


async def test_the_log_and_the_audit_name_the_node(
    nodes: Nodes, accounts: Accounts, operator: str
) -> None:
    user, node = f"user-{new_stream_id()}", await node_id(nodes[0], operator)
    async with login(nodes[0], accounts.session(user)):
        assert (await connection_of(accounts, user))[0] == node
    await until(lambda: bool(lines_with(nodes[0], "[relay.connection.connection]")))
    for text in ("[relay.connection.connection]", "sessions are watched", "this is a node"):
        (line, *_) = lines_with(nodes[0], text)
        assert f"node={node}" in line
    shown = await command(accounts, "audit", "--user", user, "--what", "auth")
    assert "node" in shown.splitlines()[0].split()
    assert node in shown.splitlines()[1]


def lines_with(relay: RelayProcess, text: str) -> list[str]:
    """The lines of the log with this text."""
    return [line for line in relay.log.splitlines() if text in line]


async def refused(accounts: Accounts, *arguments: str) -> tuple[int, str]:
    """The exit code of a command, and what it says."""
    run = partial(run_relay, *arguments, database_url=accounts.url)
    done = await trio.to_thread.run_sync(run)
    return done.returncode, done.stdout + done.stderr


async def test_there_is_no_other_choice_of_nodes(nodes: Nodes, operator: str) -> None:
    answer = await nodes[0].get(
        "/figures?nodes=some", headers={"Authorization": f"Bearer {operator}"}
    )
    assert answer.status == 400
    assert "$.nodes" in answer.json()["error"]["message"]
