"""The key that push services know relay by: of the settings, or made once, and stored for all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio
from attrs import define, field

if TYPE_CHECKING:
    from relay.alerts.targets.web_push.vapid import VapidKey


class StoredPushKey(Protocol):
    """Where the key is stored; `StoreUnavailable`."""

    async def push_key(self, new: str) -> str:
        """The private key that is stored, which is the new one if there was none."""


@define(eq=False, repr=False)
class PushKeys:
    """Gives the key. What it needs is loaded, and stored, when it is asked for first."""

    _store: StoredPushKey
    _private: str | None = field(default=None, repr=False)
    """Of the settings."""
    _key: VapidKey | None = None
    _opening: trio.Lock = field(factory=trio.Lock)

    async def key(self) -> VapidKey:
        """`ConfigError` if it is no key, `StoreUnavailable`."""
        if self._key is not None:
            return self._key
        async with self._opening:
            if self._key is None:
                private = self._private
                if private is None:
                    private = await self._store.push_key(await trio.to_thread.run_sync(_new))
                self._key = await trio.to_thread.run_sync(_parsed, private)
            return self._key


def _new() -> str:
    from relay.alerts.targets.web_push.vapid import (  # noqa: PLC0415 (loads cryptography)
        new_private_key,
    )

    return new_private_key()


def _parsed(private: str) -> VapidKey:
    from relay.alerts.targets.web_push.vapid import VapidKey  # noqa: PLC0415 (loads cryptography)

    return VapidKey.parse(private)
