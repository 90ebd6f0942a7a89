"""The Python client that comes back, against a real relay: over links that die, restarts, sessions
that end."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import count

import pytest
import trio

from relay.client import (
    Alert,
    ClientClosed,
    ClientState,
    Frame,
    ReconnectPolicy,
    RelayClient,
    StateChange,
    TokenRequest,
    open_relay_client,
)
from tests.integration.accounts import Accounts
from tests.integration.cut_proxy import CutProxy, open_proxy
from tests.integration.peers import login, new_stream_id
from tests.integration.relay_process import RelayProcess, start_relay, until
from tests.unit.cut_links import HOW, Cut, cuts
from tests.unit.event_log import EventLog

STEP = 331
"""Bytes between two cuts; tests/unit/client/test_relay_client_cuts.py tries far more."""
AT_ONCE = 8
PERIOD = 0.02
"""Seconds between frames, and between alerts."""
HASTY = ReconnectPolicy(
    silence_timeout=0.2,
    ping_timeout=0.2,
    open_timeout=1,
    min_backoff=0.01,
    max_backoff=0.1,
    close_timeout=0.5,
)
MANY = (
    *("--alert-rate", "1000000/minute", "--register-rate", "1000000/minute"),
    *("--max-streams-per-user", "1000", "--max-connections-per-user", "1000"),
)


@pytest.fixture(scope="module")
def relay(database_url: str) -> Iterator[RelayProcess]:
    with start_relay(*MANY, database_url=database_url) as relay:
        yield relay


def once(cut: Cut) -> Callable[[CutProxy], Cut | None]:
    """Until it is cut: a connection may end earlier, where a busy machine is late."""
    return lambda proxy: None if proxy.cuts else cut


@asynccontextmanager
async def going_on(relay: RelayProcess, accounts: Accounts) -> AsyncIterator[str]:
    """A stream that never stops, with numbered frames and alerts; beside the links that die."""
    stream_id = new_stream_id()

    async def film() -> None:
        for number in count(1):
            await phone.send_frame(b"%d" % number)
            await trio.sleep(PERIOD)

    async def warn() -> None:
        alert = {"type": "alert", "streamId": stream_id, "severity": "low"}
        for number in count(1):
            await service.ask({**alert, "message": str(number)})
            await trio.sleep(PERIOD)

    async with (
        login(relay, accounts.session("ann")) as phone,
        login(relay, accounts.service("*")) as service,
        trio.open_nursery() as nursery,
    ):
        await phone.register(stream_id)
        nursery.start_soon(film)
        nursery.start_soon(warn)
        yield stream_id
        nursery.cancel_scope.cancel()


async def in_parallel(work: Callable[[Cut], object], step: int) -> None:
    turn = trio.CapacityLimiter(AT_ONCE)

    async def limited(cut: Cut) -> None:
        async with turn:
            await work(cut)  # type: ignore[misc]

    async with trio.open_nursery() as nursery:
        for cut in cuts(step):
            nursery.start_soon(limited, cut)


async def test_a_viewer_cut_anywhere_has_each_alert_once_and_goes_on_with_new_frames(
    relay: RelayProcess, accounts: Accounts
) -> None:
    token = accounts.session("ann")

    async def view(cut: Cut) -> None:
        log = EventLog()
        async with (
            open_proxy(relay.port, once(cut)) as proxy,
            open_relay_client(proxy.url, token, reconnect_policy=HASTY) as client,
            trio.open_nursery() as nursery,
        ):
            client.subscribe(stream_id)
            nursery.start_soon(log.record, client)
            await until(lambda: proxy.cuts == 1 and proxy.opened > 1)
            frames, alerts = log.frames, len(log.alerts)
            await until(lambda: log.frames > frames + 2 and len(log.alerts) > alerts + 1)
            nursery.cancel_scope.cancel()

    async with going_on(relay, accounts) as stream_id:
        await in_parallel(view, STEP)


async def test_a_phone_cut_anywhere_has_each_alert_stored_once_and_sends_no_frame_twice(
    relay: RelayProcess, accounts: Accounts
) -> None:
    token = accounts.session("ann")

    async def stream(cut: Cut) -> None:
        stream_id = new_stream_id()
        frames: list[int] = []
        alerts: list[str] = []

        async def watch(viewer: RelayClient) -> None:
            async for event in viewer:
                if isinstance(event, Frame):
                    frames.append(int(event.data))
                    assert frames[-2:] == sorted(set(frames[-2:]))
                elif isinstance(event, Alert):
                    alerts.append(event.message)

        async with (
            open_relay_client(relay.url, token) as viewer,
            open_proxy(relay.port, once(cut)) as proxy,
            open_relay_client(proxy.url, token, reconnect_policy=HASTY) as client,
            trio.open_nursery() as nursery,
        ):
            watched = viewer.subscribe(stream_id)
            nursery.start_soon(watch, viewer)
            phone = client.publish(stream_id)

            async def film() -> None:
                for number in count(1):
                    phone.send_frame(b"%d" % number)
                    await trio.sleep(PERIOD)

            nursery.start_soon(film)
            await phone.ready()
            await until(lambda: watched.epoch > 0)  # what was before would be history
            for message in "abc":
                nursery.start_soon(client.alert, stream_id, message)
            await until(lambda: proxy.cuts == 1 and proxy.opened > 1)
            await client.alert(stream_id, "d")
            seen = len(frames)
            await until(lambda: len(frames) > seen + 2 and len(alerts) == 4)
            nursery.cancel_scope.cancel()
        assert sorted(alerts) == list("abcd")

    await in_parallel(stream, 2 * STEP)


async def test_a_viewer_on_a_link_that_is_cut_again_and_again_misses_no_alert(
    relay: RelayProcess, accounts: Accounts
) -> None:
    def plan(proxy: CutProxy) -> Cut | None:
        number = proxy.opened
        way = "down" if number % 2 else "up"
        return Cut(way, 900 + 97 * number, HOW[number % 3]) if number < 9 else None  # type: ignore[arg-type]

    log = EventLog()
    async with (
        going_on(relay, accounts) as stream_id,
        open_proxy(relay.port, plan) as proxy,
        open_relay_client(proxy.url, accounts.session("ann"), reconnect_policy=HASTY) as client,
        trio.open_nursery() as nursery,
    ):
        client.subscribe(stream_id)
        nursery.start_soon(log.record, client)
        await until(lambda: proxy.opened > 9)
        seen = len(log.alerts)
        await until(lambda: len(log.alerts) > seen + 3)
        nursery.cancel_scope.cancel()


async def note(client: RelayClient, events: list[object]) -> None:
    async for event in client:
        events.append(event)  # noqa: PERF401 (as far as it comes)


async def test_a_session_is_renewed_on_the_living_connection_and_a_revoked_one_is_the_end(
    relay: RelayProcess, accounts: Accounts
) -> None:
    tokens = [accounts.session(lasts=timedelta(seconds=30)), accounts.session()]
    long = tokens[1]
    reasons: list[str] = []

    async def give(request: TokenRequest) -> str:
        reasons.append(request.reason)
        return tokens.pop(0) if len(tokens) > 1 else tokens[0]

    async with open_relay_client(relay.url, give) as client:
        before = await client.ready()
        assert before.expires_at is not None

        def renewed() -> bool:
            now = client.session
            return now is not None and (now.expires_at or 0) > before.expires_at + 60_000  # type: ignore[operator]

        await until(renewed)
        assert reasons == ["connect", "expiring"]
        accounts.execute("delete from session where token = %s", long)
        events: list[object] = []
        with pytest.raises(ClientClosed, match="SESSION_REVOKED") as caught:
            await note(client, events)
        assert caught.value.close_code == 4501
        assert ClientState.WAITING not in [e.state for e in events if isinstance(e, StateChange)]


async def test_a_client_comes_back_after_a_restart_with_what_it_missed(
    database_url: str, accounts: Accounts
) -> None:
    stream_id, token, service = new_stream_id(), accounts.session("ann"), accounts.service("*")
    alert = {"type": "alert", "streamId": stream_id, "severity": "low"}

    async def hear(client: RelayClient) -> Alert:
        while not isinstance(event := await anext(client), Alert):
            pass
        return event

    with start_relay(*MANY, database_url=database_url) as first:
        bind = first.url.removeprefix("http://")
        async with open_relay_client(first.url, token, reconnect_policy=HASTY) as client:
            phone = client.publish(stream_id, alerts=True)
            await phone.ready()
            async with login(first, service) as detector:
                await detector.ask(alert | {"message": "before"})
            assert (await hear(client)).message == "before"
            first.signal(signal.SIGTERM)
            await first.ended()
            with start_relay(*MANY, database_url=database_url, bind=bind) as second:
                async with login(second, service) as detector:
                    await detector.ask(alert | {"message": "meanwhile"})
                assert (await hear(client)).message == "meanwhile"
                await phone.ready()
