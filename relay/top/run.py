"""Takes snapshots of a relay and shows them."""

from __future__ import annotations

from typing import NoReturn

import msgspec
import trio
from attrs import define, field
from rich.console import Console
from rich.live import Live

from relay.errors import ConfigError, RelayError, StoreUnavailable
from relay.logs.printable import printable
from relay.outgoing.http_client import HttpClient, open_http_client
from relay.protocol.reports import FiguresReport, ReadyReport, StatsReport
from relay.top.answers import MAX_REPORT_BYTES, NotARelay, read
from relay.top.screen import screen
from relay.top.snapshots import Snapshot, SnapshotDelta
from relay.top.terminal import read_single_keys, until_quit

SNAPSHOT_TIMEOUT = 5.0
"""Seconds for all answers of one snapshot."""
SNAPSHOT_INTERVAL = 1.0
"""Seconds between the two snapshots of `--once`."""
SNAPSHOT_WIDTH = 120
"""Columns of the output where it is not a terminal."""


class RelayUnavailable(RelayError):
    """The relay does not answer for now."""


class TokenRefused(ConfigError):
    """The relay refuses the token; to try again is of no use."""


@define(eq=False)
class Top:
    """A relay under observation."""

    url: str
    _token: str = field(repr=False)
    _http_client: HttpClient
    all_nodes: bool = False
    """Whether the figures of all nodes are wanted."""
    delta: SnapshotDelta | None = None
    trouble: str | None = None
    """Why the last snapshot failed."""

    async def refresh(self) -> None:
        """Take a snapshot; `TokenRefused`, `RelayUnavailable`, `NotARelay`."""
        with trio.move_on_after(SNAPSHOT_TIMEOUT) as scope:
            figures = await self.figures("/figures?nodes=all" if self.all_nodes else "/figures")
            stats = read(await self._ask("/stats"), StatsReport, "/stats")
            ready = read(await self._ask("/ready"), ReadyReport, "/ready")
            snapshot = Snapshot(trio.current_time(), stats, ready, figures)
            before = None if self.delta is None or self.trouble else self.delta.now
            self.delta, self.trouble = SnapshotDelta(snapshot, before), None
        if scope.cancelled_caught:
            raise RelayUnavailable(f"no answer within {SNAPSHOT_TIMEOUT:g} s")

    async def figures(self, path: str) -> FiguresReport:
        """The figures at a path; the same errors."""
        return read(await self._ask(path, self._token), FiguresReport, path)

    async def try_refresh(self) -> None:
        """Take a snapshot, or set `trouble` if a later one may succeed; `TokenRefused`."""
        try:
            await self.refresh()
        except (RelayUnavailable, NotARelay) as problem:
            self.trouble = str(problem)

    async def _ask(self, path: str, token: str | None = None) -> bytes:
        try:
            answer = await self._http_client.get_any(
                self.url + path, token=token, max_bytes=MAX_REPORT_BYTES
            )
        except StoreUnavailable as problem:
            raise RelayUnavailable(str(problem)) from None
        if answer.status == 200 or (path == "/ready" and answer.status == 503):
            return answer.body
        said = _message_in(answer.body)
        if answer.status in {401, 403} and said:
            raise TokenRefused(
                f"{self.url} refuses the token: {said} (`relay token service NAME --operate`"
                " creates one that is accepted)"
            )
        if answer.status in {429, 503} and said:
            raise RelayUnavailable(said)
        raise NotARelay(f"the server at {path} answers {answer.status}, so it is not a relay")


async def read_figures(url: str, token: str) -> FiguresReport:
    """The figures of all nodes; `TokenRefused`, `RelayUnavailable`, `NotARelay`."""
    async with open_http_client() as http_client:
        with trio.move_on_after(SNAPSHOT_TIMEOUT):
            return await Top(url, token, http_client).figures("/figures?nodes=all")
    raise RelayUnavailable(f"{url} did not answer within {SNAPSHOT_TIMEOUT:g} s")


async def show(
    url: str, token: str, interval: float, console: Console, *, all_nodes: bool = False
) -> None:
    """Show a relay, or all nodes of its cluster, until the user quits; `TokenRefused`."""
    async with open_http_client() as http_client:
        top = Top(url, token, http_client, all_nodes)
        with (
            read_single_keys() as keys,
            Live(console=console, screen=True, auto_refresh=False) as live,
        ):

            def draw() -> None:
                live.update(screen(url, top.delta, top.trouble, console), refresh=True)

            async def keep_refreshing() -> NoReturn:
                while True:
                    draw()
                    await top.try_refresh()
                    draw()
                    await trio.sleep(interval)

            draw()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep_refreshing)
                await until_quit(keys, draw)
                nursery.cancel_scope.cancel()


async def show_once(url: str, token: str, console: Console, *, all_nodes: bool = False) -> None:
    """Print one snapshot, with the rates of a second.

    Raises `TokenRefused`, `RelayUnavailable` or `NotARelay`.
    """
    async with open_http_client() as http_client:
        top = Top(url, token, http_client, all_nodes)
        await top.refresh()
        await trio.sleep(SNAPSHOT_INTERVAL)
        await top.refresh()
    console.print(screen(url, top.delta, None, console, live=False))


class _Problem(msgspec.Struct):
    message: str


class _ErrorAnswer(msgspec.Struct):
    error: _Problem


def _message_in(body: bytes) -> str | None:
    """The message of a relay's error; None if it is not one."""
    try:
        return printable(msgspec.json.decode(body, type=_ErrorAnswer).error.message)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
