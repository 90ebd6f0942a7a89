"""Workers carry streams for each other and for those of other machines, also while some are started
anew or killed. The phones of these tests are relay's own client, and come back when it does."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack
from itertools import pairwise

import pytest
import trio
from attrs import define, field

from relay.client.events import Registered
from relay.client.relay_client import open_relay_client
from tests.integration.accounts import Accounts
from tests.integration.cluster.scene import PAUSE, Scene, Viewer, open_scene
from tests.integration.peers import Peer, login, new_stream_id
from tests.integration.relay_process import RelayProcess, start_relay, until, within
from tests.integration.workers.processes import until_ready, workers_of

CLUSTER = ("--workers", "2", "--cluster-bind", "127.0.0.1:0", "--offline-grace", "3")
VIEWERS = 6
Machines = tuple[RelayProcess, RelayProcess]


@pytest.fixture(scope="module")
def machines(database_url: str) -> Iterator[Machines]:
    with (
        start_relay(*CLUSTER, database_url=database_url) as first,
        start_relay(*CLUSTER, database_url=database_url) as second,
    ):
        yield first, second


@pytest.mark.slow
async def test_streams_cross_between_the_workers_of_two_machines(
    machines: tuple[RelayProcess, RelayProcess], accounts: Accounts
) -> None:
    token = accounts.session("many")
    first, second = machines
    async with AsyncExitStack() as stack:

        async def join(relay: RelayProcess) -> Peer:
            # Without the name of a stream in the URL each goes to the worker with the fewest.
            return await stack.enter_async_context(login(relay, token, path="/streams/subscribe"))

        phone = await join(first)
        stream_id = new_stream_id()
        await phone.register(stream_id)
        viewers = [await join(relay) for relay in (first, second) for _ in range(VIEWERS)]
        for viewer in viewers:
            await viewer.subscribe(stream_id)
        for number in range(1, 21):
            await phone.send_frame(b"frame %d" % number)
            for viewer in viewers:
                assert (await viewer.receive_type("video-frame"))["seq"] == number
        while (await phone.receive_type("status"))["consumers"] != len(viewers):
            pass


@define(eq=False)
class ReturningPhone:
    """Sends numbered frames, over one connection after the other."""

    stream_id: str
    registrations: int = 0
    first_numbers: list[int] = field(factory=list)
    """The first number of a frame of each connection."""
    number: int = 0

    async def run(self, relay: RelayProcess, token: str) -> None:
        url = relay.url.replace("http", "ws", 1)
        async with open_relay_client(url, token) as client, trio.open_nursery() as nursery:
            publication = client.publish(self.stream_id)

            async def send() -> None:
                while True:
                    if publication.send_frame(b"%d " % (self.number + 1)):
                        self.number += 1
                        if len(self.first_numbers) < self.registrations:
                            self.first_numbers.append(self.number)
                    await trio.sleep(PAUSE)

            nursery.start_soon(send)
            async for event in client:
                if isinstance(event, Registered):
                    self.registrations += 1

    async def until_back(self, times: int) -> int:
        """Wait until it has come back so often; returns the number of its first frame then."""
        await until(lambda: len(self.first_numbers) > times)
        return self.first_numbers[times]


async def show(scene: Scene, relay: RelayProcess, token: str) -> ReturningPhone:
    phone = ReturningPhone(new_stream_id())
    scene.nursery.start_soon(phone.run, relay, token)
    await phone.until_back(0)
    return phone


async def watch(scene: Scene, relay: RelayProcess, phone: ReturningPhone) -> Viewer:
    scene.stream_id = phone.stream_id
    viewer = await scene.viewer(relay)
    await viewer.see(3)
    return viewer


@pytest.mark.slow
async def test_a_phone_goes_on_with_its_stream_while_all_workers_are_started_anew(
    machines: Machines, accounts: Accounts
) -> None:
    first, second = machines
    await until_ready(first)
    async with open_scene(accounts) as scene:
        phone = await show(scene, first, scene.token)
        viewers = [await watch(scene, second, phone) for _ in range(2)]
        old = workers_of(first)
        first.signal(signal.SIGUSR2)
        await first.until_logged("all workers were started anew")
        assert set(old).isdisjoint(workers_of(first))
        await phone.until_back(1)
        for viewer in viewers:
            await viewer.see_number(phone.number + 3)
        for viewer in viewers:
            viewer.check_order()
            assert len({each.epoch for each in viewer.frames}) == 1
            assert "offline" not in [status for status, _ in viewer.statuses]
            for before, after in pairwise(viewer.frames):
                # What the phone had sent to a worker that had ended has no seq.
                assert after.seq - before.seq <= after.number - before.number


async def test_streams_of_a_killed_worker_go_on_at_another_and_those_of_others_as_before(
    machines: Machines, accounts: Accounts
) -> None:
    first, second = machines
    await until_ready(first)
    async with open_scene(accounts) as scene:
        # Each to the worker with the fewest connections.
        phones = [await show(scene, first, scene.token) for _ in range(2)]
        viewers = [await watch(scene, second, phone) for phone in phones]
        os.kill(workers_of(first)[0], signal.SIGKILL)
        await until(lambda: any(phone.registrations > 1 for phone in phones))
        lost = 0 if phones[0].registrations > 1 else 1
        number = await phones[lost].until_back(1)
        async with within(1):
            seen = await viewers[lost].see_number(number)
        assert seen.epoch > viewers[lost].frames[0].epoch
        await viewers[lost].see(3)
        await viewers[1 - lost].see(3)
        viewers[lost].check_order()
        viewers[1 - lost].check_noticed_nothing()
        assert phones[1 - lost].registrations == 1
