"""The participants of the demo: a phone, viewers, and a service that raises alerts.

Each is an ordinary client with a connection of its own, and measures what it sends and receives.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from functools import partial
from itertools import count, cycle
from pathlib import Path
from typing import get_args

import trio
from attrs import field, frozen

from relay.client import Problem, RelayClient, ServerError, ShapedStream, open_relay_client
from relay.client.shaping import SHAPED_RECEIVE_BUFFER, TokenBucket
from relay.demo.stats import ParticipantStats
from relay.demo.video import Picture, play
from relay.protocol.messages import Severity

STREAM_ID = "demo"
PICTURES_AHEAD = 8
"""Number of pictures that are decoded before they are due."""
MAX_LATENESS = 0.1
"""Seconds; a phone skips a picture that is later, if it has the next one."""
ALERT_INTERVAL = 3.0


@frozen
class ParticipantOptions:
    """The URL of the relay, the token, and the speed of the link (None: unlimited)."""

    url: str
    token: str = field(repr=False)
    bits_per_second: int | None = None


@asynccontextmanager
async def connect(
    options: ParticipantOptions, stats: ParticipantStats
) -> AsyncIterator[RelayClient]:
    """Connect, measuring and if asked for limiting the traffic on the link."""
    bucket = receive_buffer = None
    if options.bits_per_second is not None:
        bucket = TokenBucket(options.bits_per_second / 8)
        receive_buffer = SHAPED_RECEIVE_BUFFER
    link = partial(ShapedStream, meter=stats.meter, bucket=bucket)
    async with open_relay_client(
        options.url, options.token, receive_buffer=receive_buffer, wrap=link
    ) as client:
        yield client


async def stream_video(
    options: ParticipantOptions,
    video: Path,
    stats: ParticipantStats,
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    """Stream a video as a phone does, over and over."""
    pictures, upcoming = trio.open_memory_channel[Picture](PICTURES_AHEAD)
    async with connect(options, stats) as client:
        phone = client.publish(STREAM_ID, metadata={"mimeType": "image/jpeg"}, alerts=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_count_events, client, stats)
            nursery.start_soon(_decode, video, pictures)
            await phone.ready()
            task_status.started()
            await send_in_time(upcoming, phone.send_frame, stats)


async def send_in_time(
    pictures: trio.MemoryReceiveChannel[Picture],
    send: Callable[[bytes], bool],
    stats: ParticipantStats,
) -> None:
    """Send each picture when it is due.

    Skips a picture if the link has no room for it, or if it is late and there is another.
    """
    start: float | None = None
    async for picture in pictures:
        now = trio.current_time()
        start = now if start is None else start
        late = now - start - picture.due
        if late > MAX_LATENESS and pictures.statistics().current_buffer_used:
            stats.missed += 1
            continue
        await trio.sleep(max(0, -late))
        if send(picture.jpeg):
            stats.count_sent_frame()
        else:
            stats.missed += 1


async def watch(
    options: ParticipantOptions, stats: ParticipantStats, *, task_status: trio.TaskStatus[None]
) -> None:
    """Watch the stream as a viewer does."""
    async with connect(options, stats) as client:
        client.subscribe(STREAM_ID)
        await client.ready()
        task_status.started()
        await _count_events(client, stats)


async def raise_alerts(options: ParticipantOptions, stats: ParticipantStats) -> None:
    """Raise an alert every few seconds, as a service does."""
    async with connect(options, stats) as client:
        for number, severity in zip(count(1), cycle(get_args(Severity)), strict=False):
            await client.alert(STREAM_ID, f"Alert {number} of the demo", severity=severity)
            stats.alerts_out += 1
            await trio.sleep(ALERT_INTERVAL)


async def _decode(video: Path, pictures: trio.MemorySendChannel[Picture]) -> None:
    with closing(play(video)) as playing:
        while True:
            await pictures.send(await trio.to_thread.run_sync(next, playing))


async def _count_events(client: RelayClient, stats: ParticipantStats) -> None:
    async for event in client:
        if isinstance(event, Problem):
            raise ServerError(event.code, event.message, event.retry_after)
        stats.count_event(event)
