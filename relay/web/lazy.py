"""Loads what answers plain HTTP requests with the first of them: a relay may get none for long."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog
import trio
from attrs import define, field

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from relay.web.setup import WebParts

log = structlog.get_logger()


@define(eq=False, repr=False)
class LazyWeb:
    """An ASGI application that is made when it is first called."""

    _make: Callable[[], WebParts]
    _parts: WebParts | None = None
    _lock: trio.Lock = field(factory=trio.Lock)

    @property
    def parts(self) -> WebParts:
        """What it consists of, made now if need be."""
        if self._parts is None:
            self._parts = self._make()
        return self._parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._parts is None:
            async with self._lock:
                await self._load()
        await self.parts.application(scope, receive, send)

    async def _load(self) -> None:
        """Make it, unless another request has done so; what fails is tried again with the next."""
        if self._parts is not None:
            return
        try:
            # This takes a tenth of a second, in which the event loop goes on.
            await trio.to_thread.run_sync(_import_web)
            self._parts = self._make()
        except Exception:
            log.exception("request failed")  # as the application does with its own
            raise


def _import_web() -> None:
    import relay.web.setup  # noqa: F401, PLC0415 (for its effect: it is loaded)
