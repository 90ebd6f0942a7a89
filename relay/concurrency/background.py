"""Tasks that serve a block and end with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def open_background() -> AsyncIterator[trio.Nursery]:
    """A nursery for tasks that serve the body of an `async with` and end with it.

    An error of the body comes out unchanged; errors of the tasks come out in a group, with that of
    the body if there is one, too.
    """
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except Exception as error:  # noqa: BLE001 (raised again below)
                failure = error
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if failure is None:
            raise
        raise BaseExceptionGroup("the body, and its tasks", [failure, *group.exceptions]) from None
    if failure is not None:
        raise failure
