"""Counts the attempts to authenticate of all workers, and tells them what follows.

Tokens and addresses are digests with a secret of the machine. All tables are bounded
(`relay/guard/rates.py`), and so is what is said: bans at once, since each takes many failures, and
tokens that were good together, some times a second.
"""

from __future__ import annotations

from typing import NoReturn

import trio
from attrs import define, field

from relay.concurrency.wakeup import Wakeup
from relay.guard.failed_auths import KNOWN_GOOD_SECONDS, MAX_KNOWN_GOOD, AuthKeys, FailedAuths
from relay.guard.rates import ExpiringKeys
from relay.workers.child import ChildWorker
from relay.workers.messages import Attempted, Bans, KnownTokens, LogBan

TELL_INTERVAL = 0.05
"""Seconds in which tokens that were good are gathered before workers are told."""
RENEW_AFTER = KNOWN_GOOD_SECONDS / 10
"""Seconds after which workers are told again of a token that was good again."""


@define(eq=False)
class AttemptsOfMachine:
    """The counts, and who is told of them."""

    _failures: FailedAuths
    _children: list[ChildWorker]
    """Kept up to date by the parent."""
    _untold: dict[str, float] = field(init=False, factory=dict)
    """Seconds for which tokens stay known, of which the workers have not been told."""
    _told: ExpiringKeys = field(
        init=False, factory=lambda: ExpiringKeys(RENEW_AFTER, MAX_KNOWN_GOOD)
    )
    """Known tokens of which the workers were told lately."""
    _more: Wakeup = field(init=False, factory=Wakeup)

    def __attrs_post_init__(self) -> None:
        self._failures.on_banned = self._tell_ban
        self._failures.on_known = self._note_known

    @property
    def secret(self) -> bytes:
        return self._failures.verdicts.secret

    def welcome(self, child: ChildWorker) -> None:
        """Tell a new worker what holds."""
        verdicts = self._failures.verdicts
        child.tell(Bans(verdicts.banned.all_remaining()))
        child.tell(KnownTokens(verdicts.known_good.all_remaining()))

    def note(self, child: ChildWorker, attempted: Attempted) -> None:
        """Count an attempt of a worker."""
        keys = AuthKeys(attempted.address, attempted.token)
        if attempted.good:
            self._failures.count_success(keys)
        elif self._failures.count_failure(keys):
            child.tell(LogBan(keys.address))

    async def keep_telling(self) -> NoReturn:
        """Tell the workers of tokens that were good."""
        while True:
            while not self._untold:
                await self._more.wait()
            known, self._untold = self._untold, {}
            for child in self._children:
                child.tell(KnownTokens(known))
            await trio.sleep(TELL_INTERVAL)

    def _tell_ban(self, key: str, seconds: float) -> None:
        for child in self._children:
            child.tell(Bans({key: seconds}))

    def _note_known(self, key: str, seconds: float) -> None:
        if seconds and self._told.remaining(key) is not None:
            return
        self._told.add(key, seconds and RENEW_AFTER)
        self._untold[key] = seconds
        self._more.set()
