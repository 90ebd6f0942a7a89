"""An issuer's public keys, fetched from where it publishes them. Floor 2.

The service looks every few minutes, and sooner when a token names a key that is not known, but
never more often than its interval: tokens that name made-up keys wait together for the next look
and cause no more of them. While the issuer is away, the keys that it last had serve on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import msgspec
import structlog
import trio
from attrs import define, field
from joserfc.jwk import Key

from relay.auth.keys import fits, import_public
from relay.errors import StoreUnavailable
from relay.outbound import Condition, Outbound, Unanswered

EVERY = 300.0
"""Seconds from look to look: how long a key that is withdrawn may still serve."""
INTERVAL = 5.0
"""Seconds between looks at the least."""
PATIENCE = 5.0
"""Seconds that one look may take."""
KEPT = 86_400.0
"""Seconds for which keys serve while the issuer is away."""
LARGEST = 256 * 1024
MOST_KEYS = 100

log = structlog.get_logger()


class _Document(msgspec.Struct):
    keys: list[Any]


@define(eq=False)
class _Look:
    """One look, for those who wait for it."""

    wanted: trio.Event = field(factory=trio.Event)
    done: trio.Event = field(factory=trio.Event)
    succeeded: bool = False


@define(eq=False)
class KeySet:
    """The keys of an issuer, and the service that keeps them fresh."""

    _outbound: Outbound
    _url: str
    _keys: Sequence[Key] = ()
    _seen: float = float("-inf")
    """When the last look that succeeded began."""
    _due: float = float("-inf")
    """Before this time nobody looks."""
    _next: _Look = field(factory=_Look)
    _failing: bool = False
    _condition: Condition = field(factory=lambda: Condition("jwks"))

    async def find(self, algorithm: str, key_id: str | None) -> Key | None:
        """The key of this id; one without id only where there is no choice.

        Waits for a look when it is not there. `StoreUnavailable` when that fails.
        """
        found = self._matching(algorithm, key_id)
        if not found:
            await self._look_again()
            found = self._matching(algorithm, key_id)
        if key_id is None and len(found) > 1:
            return None
        return found[0] if found else None

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        """Keep the keys fresh until cancelled. Ready at once, so that relay starts without them."""
        task_status.started()
        while True:
            with trio.move_on_at(self._seen + EVERY):
                await self._next.wanted.wait()
            await trio.sleep_until(self._due)
            look, self._next = self._next, _Look()
            self._due = trio.current_time() + INTERVAL
            try:
                look.succeeded = await self._look()
            finally:
                self._failing = not look.succeeded
                look.done.set()

    def _matching(self, algorithm: str, key_id: str | None) -> list[Key]:
        if trio.current_time() > self._seen + KEPT:
            return []
        return [key for key in self._keys if key_id in (None, key.kid) and fits(key, algorithm)]

    async def _look_again(self) -> None:
        """Wait for a look that begins from now on."""
        look = self._next
        look.wanted.set()
        if self._failing and trio.current_time() < self._due:
            raise StoreUnavailable  # as it would have been a moment ago
        await look.done.wait()
        if not look.succeeded:
            raise StoreUnavailable

    async def _look(self) -> bool:
        began = trio.current_time()
        try:
            with trio.fail_after(PATIENCE):
                document = await self._outbound.get(self._url, most=LARGEST)
            self._keys = _read(document)
        except trio.TooSlowError:
            self._condition.fails("too slow")
            return False
        except Unanswered as unanswered:
            self._condition.fails(str(unanswered))
            return False
        self._condition.answers()
        self._seen = began
        return True


def _read(document: bytes) -> list[Key]:
    try:
        listed = msgspec.json.decode(document, type=_Document).keys
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise Unanswered("something that is no JWK set") from None
    if len(listed) > MOST_KEYS:
        raise Unanswered(f"more than {MOST_KEYS} keys")
    keys = [key for jwk in listed if (key := import_public(jwk)) is not None]
    if not keys:
        log.warning("there is no key for JWTs where they should be", listed=len(listed))
    return keys
