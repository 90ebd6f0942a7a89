"""Looks at a relay again and again, and shows it. Floor 6."""

from __future__ import annotations

from typing import NoReturn

import msgspec
import trio
from attrs import define, field
from rich.console import Console
from rich.live import Live

from relay.errors import ConfigError, RelayError, StoreUnavailable
from relay.outbound import Outbound, open_outbound
from relay.printable import printable
from relay.top.answers import MOST_BYTES, Figures, NoRelay, Ready, Stats, read
from relay.top.figures import Change, Look
from relay.top.screen import screen
from relay.top.terminal import keys_one_by_one, until_left

PATIENCE = 5.0
"""Seconds for all answers of one look."""
BETWEEN_TWO = 1.0
"""Seconds between the two looks of a single snapshot."""
WIDE = 120
"""Columns where there is no terminal whose width counts."""


class Away(RelayError):
    """There is no answer for now."""


class Refused(ConfigError):
    """The relay does not take the token, and will not in a while."""


@define(eq=False)
class Top:
    """One relay, looked at by somebody who may."""

    url: str
    _token: str = field(repr=False)
    _outbound: Outbound
    change: Change | None = None
    trouble: str | None = None
    """Why the last look failed."""

    async def look(self) -> None:
        """Look once more; `Refused`, `Away`, `NoRelay`."""
        with trio.move_on_after(PATIENCE) as scope:
            figures = read(await self._ask("/figures", self._token), Figures, "/figures")
            stats = read(await self._ask("/stats"), Stats, "/stats")
            ready = read(await self._ask("/ready"), Ready, "/ready")
            look = Look(trio.current_time(), stats, ready, figures)
            before = None if self.change is None or self.trouble else self.change.now
            self.change, self.trouble = Change(look, before), None
        if scope.cancelled_caught:
            raise Away(f"no answer within {PATIENCE:g} s")

    async def try_to_look(self) -> None:
        """The same, with `trouble` where that may pass by itself; `Refused`."""
        try:
            await self.look()
        except (Away, NoRelay) as problem:
            self.trouble = str(problem)

    async def _ask(self, path: str, token: str | None = None) -> bytes:
        try:
            answer = await self._outbound.look(self.url + path, token=token, most=MOST_BYTES)
        except StoreUnavailable as problem:
            raise Away(str(problem)) from None
        if answer.status == 200 or (path == "/ready" and answer.status == 503):
            return answer.body
        said = _message_in(answer.body)
        if answer.status in {401, 403} and said:
            raise Refused(
                f"{self.url} refuses the token: {said} (a token that may:"
                " `relay token service NAME --operate`)"
            )
        if answer.status in {429, 503} and said:
            raise Away(said)
        raise NoRelay(f"what answers at {path} says {answer.status}, as no relay does")


async def show(url: str, token: str, interval: float, console: Console) -> None:
    """Show a relay until somebody leaves; `Refused`."""
    async with open_outbound() as outbound:
        top = Top(url, token, outbound)
        with (
            keys_one_by_one() as keys,
            Live(console=console, screen=True, auto_refresh=False) as live,
        ):

            def draw() -> None:
                live.update(screen(url, top.change, top.trouble, console), refresh=True)

            async def keep_looking() -> NoReturn:
                while True:
                    draw()
                    await top.try_to_look()
                    draw()
                    await trio.sleep(interval)

            draw()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep_looking)
                await until_left(keys, draw)
                nursery.cancel_scope.cancel()


async def show_once(url: str, token: str, console: Console) -> None:
    """Print one snapshot, with rates of the last second; `Refused`, `Away`, `NoRelay`."""
    async with open_outbound() as outbound:
        top = Top(url, token, outbound)
        await top.look()
        await trio.sleep(BETWEEN_TWO)
        await top.look()
    console.print(screen(url, top.change, None, console, live=False))


class _Problem(msgspec.Struct):
    message: str


class _Refusal(msgspec.Struct):
    error: _Problem


def _message_in(body: bytes) -> str | None:
    """What an error of the relay's says; None if it is none."""
    try:
        return printable(msgspec.json.decode(body, type=_Refusal).error.message)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
