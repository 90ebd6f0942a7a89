"""Who takes part in the demo: a phone, viewers, a service that raises alerts. Floor 6.

Each is an ordinary client on a connection of its own and counts what it sees there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from functools import partial
from itertools import count, cycle
from pathlib import Path

import trio
from attrs import field, frozen

from relay.client import Problem, RelayClient, ServerError, ShapedStream, open_relay_client
from relay.client.shaping import SHAPED_RECEIVE_BUFFER, TokenBucket
from relay.demo.figures import Figures
from relay.demo.video import Picture, play

STREAM_ID = "demo"
PICTURES_AHEAD = 8
"""How many are decoded before they are due."""
TOO_LATE = 0.1
"""Seconds after which a phone skips a picture if it has the next one."""
ALERT_INTERVAL = 3.0
SEVERITIES = ("low", "medium", "high", "critical")


@frozen
class Seat:
    """Where a participant connects, as whom, and how fast its network is."""

    url: str
    token: str = field(repr=False)
    bits_per_second: int | None = None


@asynccontextmanager
async def take(seat: Seat, figures: Figures) -> AsyncIterator[RelayClient]:
    """Connect, with a meter on the link."""
    bucket = receive_buffer = None
    if seat.bits_per_second is not None:
        bucket = TokenBucket(seat.bits_per_second / 8)
        receive_buffer = SHAPED_RECEIVE_BUFFER
    link = partial(ShapedStream, meter=figures.meter, bucket=bucket)
    async with open_relay_client(
        seat.url, seat.token, receive_buffer=receive_buffer, wrap=link
    ) as client:
        yield client


async def stream_video(
    seat: Seat, video: Path, figures: Figures, *, task_status: trio.TaskStatus[None]
) -> None:
    """The phone."""
    pictures, upcoming = trio.open_memory_channel[Picture](PICTURES_AHEAD)
    async with take(seat, figures) as client:
        phone = client.publish(STREAM_ID, metadata={"mimeType": "image/jpeg"}, alerts=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_count_events, client, figures)
            nursery.start_soon(_decode, video, pictures)
            await phone.ready()
            task_status.started()
            await send_in_time(upcoming, phone.send_frame, figures)


async def send_in_time(
    pictures: trio.MemoryReceiveChannel[Picture],
    send: Callable[[bytes], bool],
    figures: Figures,
) -> None:
    """Send each picture when it is due; one for which the link has no room is left out, and one
    that came too late from the decoder, if there is another."""
    start: float | None = None
    async for picture in pictures:
        now = trio.current_time()
        start = now if start is None else start
        late = now - start - picture.due
        if late > TOO_LATE and pictures.statistics().current_buffer_used:
            figures.missed += 1
            continue
        await trio.sleep(max(0, -late))
        if send(picture.jpeg):
            figures.count_sent_frame()
        else:
            figures.missed += 1


async def watch(seat: Seat, figures: Figures, *, task_status: trio.TaskStatus[None]) -> None:
    """A viewer."""
    async with take(seat, figures) as client:
        client.subscribe(STREAM_ID)
        await client.ready()
        task_status.started()
        await _count_events(client, figures)


async def raise_alerts(seat: Seat, figures: Figures) -> None:
    """A service that has something to say now and then."""
    async with take(seat, figures) as client:
        for number, severity in zip(count(1), cycle(SEVERITIES), strict=False):
            await client.alert(STREAM_ID, f"Alert {number} of the demo", severity=severity)
            figures.alerts_out += 1
            await trio.sleep(ALERT_INTERVAL)


async def _decode(video: Path, pictures: trio.MemorySendChannel[Picture]) -> None:
    with closing(play(video)) as playing:
        while True:
            await pictures.send(await trio.to_thread.run_sync(next, playing))


async def _count_events(client: RelayClient, figures: Figures) -> None:
    async for event in client:
        if isinstance(event, Problem):
            raise ServerError(event.code, event.message, event.retry_after)
        figures.take(event)
