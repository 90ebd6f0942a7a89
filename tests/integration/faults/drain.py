"""A relay with many clients is told to stop, and some of them have stopped reading. Also what
`scripts/figures.py faults` measures with."""

from __future__ import annotations

import signal

import trio
from attrs import frozen

from tests.integration.accounts import Accounts
from tests.integration.faults.crowd import One, many_files, open_crowd
from tests.integration.peers import login, new_stream_id
from tests.integration.raw import message
from tests.integration.relay_process import RelayProcess, until

SMALL = 4096
"""Bytes that the kernel takes for who does not read."""
FRAME = bytes(256 * 1024)
FRAMES = 3
MANY = ("--max-connections-per-user", "100000", "--max-connections-per-address", "100000")
"""Flags: they are all one user's, at one address."""


@frozen
class Drained:
    """How a stop went; times are seconds from the signal."""

    told: int
    """Clients that heard SERVER_RESTARTING and the Close 4012."""
    last_told: float
    ended: float
    exit_code: int


async def drain(relay: RelayProcess, accounts: Accounts, clients: int, silent: int) -> Drained:
    """Stop a relay with so many clients, of which so many have stopped reading in the middle of a
    frame."""
    token, stream_id = accounts.session(), new_stream_id()
    told, last_told = 0, 0.0
    watch = message(type="subscribe", streamId=stream_id, consumes=["video-frame"])
    with many_files(clients + 200):
        async with (
            login(relay, token) as phone,
            open_crowd(relay, [token] * silent, receive_buffer=SMALL) as stalled,
            open_crowd(relay, [token] * (clients - silent)) as others,
        ):
            await phone.register(stream_id)
            for one in stalled:
                await one.stream.send_all(watch)
                await one.until(b'"SUBSCRIBED"')
            for _ in range(FRAMES):
                await phone.send_frame(FRAME)

            async def all_stalled() -> bool:
                """Whether each has a frame that waits behind a begun one."""
                waiting: int = (await relay.stats())["frames_to_consumers"]["waiting"]
                return waiting >= silent

            await until(all_stalled)

            async def hear(one: One) -> None:
                nonlocal told, last_told
                if await one.hear_goodbye():
                    told += 1
                    last_told = trio.current_time() - start

            start = trio.current_time()
            relay.signal(signal.SIGTERM)
            async with trio.open_nursery() as nursery:
                for one in others:
                    nursery.start_soon(hear, one)
                code = await relay.ended()
                ended = trio.current_time() - start
    return Drained(told, last_told, ended, code)
