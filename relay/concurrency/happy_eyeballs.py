"""Happy Eyeballs (RFC 8305): an address that does not answer does not delay the next one for long.

`trio.open_tcp_stream` does this for a name. This is for addresses that have to be checked first,
and for sockets that have to be set up before they connect.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol, TypeVar

import trio

ATTEMPT_DELAY = 0.25
"""Seconds before the next attempt begins beside one that is still under way; as in Trio."""


class _Connection(Protocol):
    async def aclose(self) -> object: ...


C = TypeVar("C", bound=_Connection)
Address = TypeVar("Address")


async def connect_first(attempts: Iterable[Callable[[], Awaitable[C | None]]]) -> C | None:
    """Return the first connection that one of the attempts makes, or None if all fail.

    An attempt that fails returns None, and the next one begins at once. When one succeeds, the
    others are cancelled.
    """
    winner: C | None = None

    async def attempt(connect: Callable[[], Awaitable[C | None]], failed: trio.Event) -> None:
        nonlocal winner
        connection = await connect()
        if connection is None:
            failed.set()
        elif winner is None:
            winner = connection
            nursery.cancel_scope.cancel()
        else:  # two succeeded at the same moment
            with trio.move_on_after(0):
                await connection.aclose()

    try:
        async with trio.open_nursery() as nursery:
            for connect in attempts:
                failed = trio.Event()
                nursery.start_soon(attempt, connect, failed)
                with trio.move_on_after(ATTEMPT_DELAY):
                    await failed.wait()
    except BaseException:
        if winner is not None:
            with trio.move_on_after(0, shield=True):
                await winner.aclose()
        raise
    return winner


def alternate_families(
    addresses: Iterable[Address], family: Callable[[Address], object]
) -> Sequence[Address]:
    """Reorder addresses so that the second is of another family than the first, if there is one.

    A network without IPv6 then costs one attempt, however many IPv6 addresses a name has.
    """
    ordered = list(addresses)
    for index, address in enumerate(ordered):
        if family(address) != family(ordered[0]):
            ordered.insert(1, ordered.pop(index))
            break
    return ordered
