"""One relay of several processes, as its users run it."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
from websockets.exceptions import ConnectionClosed, InvalidMessage

from relay.client.events import Frame
from relay.client.relay_client import open_relay_client
from relay.load.run.targets.target_reports import read_metrics
from relay.process.cpu_wait import read_cpu_wait
from tests.integration.accounts import Accounts
from tests.integration.peers import Peer, login, new_stream_id, open_peer
from tests.integration.raw import open_raw
from tests.integration.relay_process import (
    PATIENCE,
    RelayProcess,
    processes_about,
    run_relay,
    start_relay,
    until,
)
from tests.integration.workers.processes import is_running, metric, until_ready, workers_of

CALLS, CALLERS = 300, 10


@pytest.fixture(scope="module")
def relay(database_url: str) -> Iterator[RelayProcess]:
    with start_relay("--workers", "2", database_url=database_url) as relay:
        yield relay


def path_for(stream_id: str, kind: str) -> str:
    return f"/streams/{kind}?stream={stream_id}"


async def test_both_workers_serve_streams_and_a_stream_is_on_one(
    relay: RelayProcess, accounts: Accounts
) -> None:
    token = accounts.session("both")
    async with AsyncExitStack() as stack:
        for number in range(4):
            stream_id = new_stream_id()
            phone, *viewers = [
                await stack.enter_async_context(login(relay, token, path=path_for(stream_id, kind)))
                for kind in ("register", "subscribe", "subscribe")
            ]
            await phone.register(stream_id)
            for viewer in viewers:
                await viewer.subscribe(stream_id)
            await phone.send_frame(b"frame %d" % number)
            for viewer in viewers:
                frame = await viewer.receive_type("video-frame")
                assert frame["streamId"] == stream_id
        stats = await relay.stats()
        assert stats["authenticated"] >= 12
        assert stats["streams"]["streaming"] == 4
        figures = await relay.get("/figures", headers=operator(accounts))
        assert len(figures.json()["streams"]) == 4
        numbers = [each["producer"] for each in figures.json()["streams"]]
        assert len(set(numbers)) == 4  # a connection has one number on the whole machine
    assert {"worker=1", "worker=2"} <= set(re.findall(r"worker=\d", relay.log))


async def test_load_tests_see_what_all_workers_use(relay: RelayProcess) -> None:
    text = (await relay.get("/metrics")).body.decode()
    found = dict(
        re.findall(r'^process_cpu_seconds_total\{worker="(\d)"\} (\S+)', text, re.MULTILINE)
    )
    assert set(found) == {"1", "2"}
    usage = read_metrics(text).usage
    assert usage is not None
    assert usage.cpu_seconds == sum(map(float, found.values())) > 0
    expected = {f'worker="{each}"' for each in found} if read_cpu_wait() is not None else set()
    assert set(usage.waited) == expected


def operator(accounts: Accounts) -> dict[str, str]:
    return {"Authorization": f"Bearer {accounts.service(operate=True)}"}


async def test_an_operator_ends_a_connection_of_any_worker_by_its_number(
    relay: RelayProcess, accounts: Accounts
) -> None:
    token = accounts.session("ended")
    async with AsyncExitStack() as stack:
        phones = {}
        for _ in range(2):
            stream_id = new_stream_id()
            path = path_for(stream_id, "register")
            phones[stream_id] = await stack.enter_async_context(login(relay, token, path=path))
            await phones[stream_id].register(stream_id)
        figures = (await relay.get("/figures", headers=operator(accounts))).json()["streams"]
        numbers = {each["streamId"]: each["producer"] for each in figures}
        for stream_id, phone in phones.items():
            answer = await relay.get(
                "/operate/connections/end",
                "POST",
                headers=operator(accounts),
                body=b'{"connection": %d}' % numbers[stream_id],
            )
            assert answer.status == 200, answer.body
            await phone.hear_end()


async def test_a_revocation_ends_the_connections_of_all_workers(
    relay: RelayProcess, accounts: Accounts
) -> None:
    token, service = accounts.session("revoked"), accounts.service(alerts=False)
    accounts.execute("update relay.service_tokens set revoke = true")
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(login(relay, token)) for _ in range(4)]
        answer = await relay.get(
            "/revocations",
            "POST",
            headers={"Authorization": f"Bearer {service}"},
            body=b'{"userId": "revoked"}',
        )
        assert answer.json() == {"connections": 4}
        for peer in peers:
            await peer.hear_end()


@pytest.mark.slow
async def test_too_many_strangers_count_for_the_machine(database_url: str) -> None:
    with start_relay(
        "--workers", "2", "--max-unauthenticated", "4", database_url=database_url
    ) as relay:
        async with AsyncExitStack() as stack:
            strangers = [await stack.enter_async_context(open_peer(relay)) for _ in range(6)]
            for stranger in strangers[:2]:
                await stranger.hear_end()
            for stranger in strangers[2:]:
                reply = await stranger.ask({"type": "auth", "token": "unknown"})
                assert reply["type"] == "error"
        assert await metric(relay, 'relay_limits_hit_total{limit="unauthenticated"}') >= 2


@pytest.mark.slow
async def test_the_time_to_authenticate_counts_from_the_accept(
    database_url: str, accounts: Accounts
) -> None:
    with start_relay("--workers", "2", "--auth-timeout", "3", database_url=database_url) as relay:
        workers = workers_of(relay)
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        token = accounts.session("late")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(be_late, relay, token)
            await trio.sleep(3.3)  # no worker can see it before its time is over
            for worker in workers:
                os.kill(worker, signal.SIGCONT)
        async with login(relay, token):
            pass


async def be_late(relay: RelayProcess, token: str) -> None:
    with pytest.raises((ConnectionClosed, InvalidMessage, OSError)):
        async with open_peer(relay) as peer:
            await peer.authenticate(token)


async def test_a_killed_worker_is_started_again_and_no_counter_falls(
    relay: RelayProcess, accounts: Accounts
) -> None:
    token = accounts.session("killed")
    name = "relay_connections_accepted_total"
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(login(relay, token)) for _ in range(4)]
        before = await metric(relay, name)
        assert before >= 4
        victim, other = workers_of(relay)
        os.kill(victim, signal.SIGKILL)
        lost: list[Peer] = []
        async with trio.open_nursery() as nursery:

            async def be_lost(peer: Peer) -> None:
                await peer.hear_end()
                lost.append(peer)

            for peer in peers:
                nursery.start_soon(be_lost, peer)
            await until(lambda: len(lost) == 2)
            nursery.cancel_scope.cancel()
        for peer in set(peers) - set(lost):
            assert (await peer.ask({"type": "streams"}))["type"] != "error"
        for _ in range(10):
            assert await metric(relay, name) >= before
        await until_ready(relay)
        assert other in workers_of(relay)
        assert victim not in workers_of(relay)
        for _ in range(4):
            await stack.enter_async_context(login(relay, token))
        assert await metric(relay, name) >= before + 4


@pytest.mark.slow
async def test_no_call_is_refused_while_all_workers_are_started_anew(
    relay: RelayProcess, accounts: Accounts
) -> None:
    await until_ready(relay)
    old = workers_of(relay)
    token = accounts.session("restarted")
    statuses: list[int] = []

    async def call() -> None:
        for _ in range(CALLS // CALLERS):
            statuses.append((await relay.get("/health")).status)
            await trio.sleep(0.05)

    async with login(relay, token) as peer, trio.open_nursery() as nursery:
        relay.signal(signal.SIGUSR2)
        for _ in range(CALLERS):
            nursery.start_soon(call)
        heard, close = await peer.hear_end()
        assert "SERVER_RESTARTING" in [message.get("code") for message in heard]
        assert close == (4012, "server restarting")
        await relay.until_logged("all workers were started anew")
    assert statuses == [200] * CALLS
    assert set(old).isdisjoint(workers_of(relay))
    await until_ready(relay)


@pytest.mark.slow
async def test_sigterm_tells_the_clients_of_all_workers_and_ends_with_0(
    database_url: str, accounts: Accounts
) -> None:
    token = accounts.session("drained")
    with start_relay("--workers", "2", database_url=database_url) as relay:
        workers = workers_of(relay)
        async with AsyncExitStack() as stack:
            peers = [await stack.enter_async_context(login(relay, token)) for _ in range(4)]
            relay.signal(signal.SIGTERM)
            for peer in peers:
                assert (await peer.hear_end())[1] == (4012, "server restarting")
            assert await relay.ended() == 0
        assert not any(map(is_running, workers))


@pytest.mark.slow
async def test_a_second_signal_ends_all_workers_at_once(database_url: str) -> None:
    with start_relay("--workers", "2", "--drain-timeout", "60", database_url=database_url) as relay:
        workers = workers_of(relay)
        async with open_raw(relay, upgrade=True):
            relay.signal(signal.SIGTERM)
            await relay.until_logged("draining")
            relay.signal(signal.SIGTERM)
            assert await relay.ended() == 2
        assert not any(map(is_running, workers))


@pytest.mark.slow
async def test_a_restart_that_was_asked_for_twice_and_has_no_time_ends_nothing(
    database_url: str,
) -> None:
    with start_relay("--workers", "2", "--drain-timeout", "1", database_url=database_url) as relay:
        relay.signal(signal.SIGUSR2)
        await relay.until_logged("starting all workers anew")
        relay.signal(signal.SIGUSR2)
        relay.signal(signal.SIGTERM)
        await relay.until_logged("draining")
        relay.signal(signal.SIGUSR2)
        assert await relay.ended() == 0


@pytest.mark.slow
async def test_nothing_is_left_of_a_relay_whose_parent_was_killed(folder: Path) -> None:
    data = folder / "data"
    with start_relay("--workers", "2", "--data-dir", str(data)) as relay:
        workers = workers_of(relay)
        assert len(workers) == 2
        async with open_peer(relay) as peer:
            relay.signal(signal.SIGKILL)
            assert (await peer.hear_end())[1] == (4012, "server restarting")
        await until(lambda: not any(map(is_running, workers)))
        await until(lambda: not processes_about(str(data)))


async def test_what_the_worker_cannot_do_is_said_before_anything_listens(
    database_url: str, tmp_path: Path
) -> None:
    key = tmp_path / "key.pem"
    key.write_text("no key")
    done = run_relay(
        *("serve", "--workers", "2", "--bind", "127.0.0.1:0"),
        *("--jwt-public-key", str(key), "--jwt-issuer", "i", "--jwt-audience", "a"),
        database_url=database_url,
    )
    assert done.returncode == 2
    assert "jwt_public_key" in done.stderr.splitlines()[-1]


async def test_a_worker_that_stands_still_holds_up_nobody_else(
    relay: RelayProcess, accounts: Accounts
) -> None:
    await until_ready(relay)
    stopped, _ = workers_of(relay)
    token = accounts.session("still")
    os.kill(stopped, signal.SIGSTOP)
    served = 0

    async def call() -> None:
        nonlocal served
        try:
            async with login(relay, token):
                served += 1
        except (ConnectionClosed, OSError):
            pass

    try:
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(call)

            async def late() -> bool:
                return served >= 3

            await until(late)
            await trio.sleep(1.2)
            for _ in range(6):  # all of these go to the other one
                await call()
            assert served >= 9
            text = (await relay.get("/metrics")).body.decode()
            assert 'relay_workers{state="late"} 1.0' in text
            os.kill(stopped, signal.SIGCONT)
    finally:
        os.kill(stopped, signal.SIGCONT)
    await until_ready(relay)


async def test_the_python_client_goes_where_its_stream_is(
    relay: RelayProcess, accounts: Accounts
) -> None:
    await until_ready(relay)
    token, url = accounts.session("client"), relay.url.replace("http", "ws", 1)
    async with AsyncExitStack() as stack:
        for number in range(3):
            stream_id = new_stream_id()
            phone = await stack.enter_async_context(open_relay_client(url, token))
            publication = phone.publish(stream_id)
            viewer = await stack.enter_async_context(open_relay_client(url, token))
            viewer.subscribe(stream_id)
            with trio.fail_after(PATIENCE):
                while not publication.registered:
                    await anext(phone)
                assert publication.send_frame(b"frame %d" % number)
                while not isinstance(event := await anext(viewer), Frame):
                    pass
            assert event.stream_id == stream_id
