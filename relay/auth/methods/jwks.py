"""An issuer's public keys, fetched from its JWKS URL.

They are fetched every few minutes, and sooner if a token names an unknown key, but never more often
than every few seconds: tokens with made-up key ids wait together for the next fetch. While the
issuer is unreachable, the last keys stay in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

import msgspec
import structlog
import trio
from attrs import define, field
from joserfc.jwk import Key

from relay.auth.methods.keys import fits, import_public
from relay.errors import StoreUnavailable
from relay.outgoing.http_client import OutageLog, RequestFailed

JWKS_REFRESH_INTERVAL = 300.0
"""Seconds between fetches, and so how long a withdrawn key may still be accepted."""
JWKS_MIN_INTERVAL = 5.0
"""The least number of seconds between fetches."""
JWKS_TIMEOUT = 5.0
"""Seconds that one fetch may take."""
JWKS_MAX_AGE = 86_400.0
"""Seconds for which keys are used while the issuer is unreachable."""
MAX_JWKS_BYTES = 256 * 1024
MAX_JWKS_KEYS = 100

log = structlog.get_logger()


class _Document(msgspec.Struct):
    keys: list[Any]


class HttpGet(Protocol):
    """Fetches a document, as `relay.outgoing.http_client` does."""

    async def get(self, url: str, *, max_bytes: int) -> bytes:
        """The body, of at most so many bytes; `RequestFailed`."""


@define(eq=False)
class _Fetch:
    """One fetch, and the tasks that wait for it."""

    wanted: trio.Event = field(factory=trio.Event)
    done: trio.Event = field(factory=trio.Event)
    succeeded: bool = False


@define(eq=False)
class KeySet:
    """The keys of an issuer, and the supervised task that keeps them fresh."""

    _http_client: HttpGet
    _url: str
    _keys: Sequence[Key] = ()
    _fetched_at: float = float("-inf")
    """When the last successful fetch began, by Trio's clock."""
    _not_before: float = float("-inf")
    """The earliest time for the next fetch."""
    _next: _Fetch = field(factory=_Fetch)
    _last_failed: bool = False
    _outage_log: OutageLog = field(factory=lambda: OutageLog("jwks"))

    async def find(self, algorithm: str, key_id: str | None) -> Key | None:
        """The key with this id; without an id, the key if there is only one for the algorithm.

        Waits for a fetch if there is none. `StoreUnavailable` if that fails.
        """
        found = self._matching(algorithm, key_id)
        if not found:
            await self._await_fetch()
            found = self._matching(algorithm, key_id)
        if key_id is None and len(found) > 1:
            return None
        return found[0] if found else None

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        """Keep the keys fresh until cancelled. Ready at once: relay can start without them."""
        task_status.started()
        while True:
            with trio.move_on_at(self._fetched_at + JWKS_REFRESH_INTERVAL):
                await self._next.wanted.wait()
            await trio.sleep_until(self._not_before)
            fetch, self._next = self._next, _Fetch()
            self._not_before = trio.current_time() + JWKS_MIN_INTERVAL
            try:
                fetch.succeeded = await self._fetch()
            finally:
                self._last_failed = not fetch.succeeded
                fetch.done.set()

    def _matching(self, algorithm: str, key_id: str | None) -> list[Key]:
        if trio.current_time() > self._fetched_at + JWKS_MAX_AGE:
            return []
        return [key for key in self._keys if key_id in (None, key.kid) and fits(key, algorithm)]

    async def _await_fetch(self) -> None:
        """Wait for a fetch that begins from now on."""
        fetch = self._next
        fetch.wanted.set()
        if self._last_failed and trio.current_time() < self._not_before:
            raise StoreUnavailable  # the last fetch failed a moment ago
        await fetch.done.wait()
        if not fetch.succeeded:
            raise StoreUnavailable

    async def _fetch(self) -> bool:
        began = trio.current_time()
        try:
            with trio.fail_after(JWKS_TIMEOUT):
                document = await self._http_client.get(self._url, max_bytes=MAX_JWKS_BYTES)
            self._keys = _read(document)
        except trio.TooSlowError:
            self._outage_log.failed("too slow")
            return False
        except RequestFailed as unanswered:
            self._outage_log.failed(str(unanswered))
            return False
        self._outage_log.succeeded()
        self._fetched_at = began
        return True


def _read(document: bytes) -> list[Key]:
    try:
        listed = msgspec.json.decode(document, type=_Document).keys
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise RequestFailed("something that is not a JWK set") from None
    if len(listed) > MAX_JWKS_KEYS:
        raise RequestFailed(f"more than {MAX_JWKS_KEYS} keys")
    keys = [key for jwk in listed if (key := import_public(jwk)) is not None]
    if not keys:
        log.warning("there is no key for JWTs where they should be", listed=len(listed))
    return keys
