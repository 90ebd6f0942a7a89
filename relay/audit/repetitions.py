"""Counts what clients do again and again: it becomes one line and one row a minute.

Of most kinds of events of one client, the first few in a minute stand by themselves. Of those that
cost a client little, fewer do: of HTTP requests, and of refusals of anonymous clients.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from attrs import define, field

from relay.model.audit_event import AuditEvent
from relay.protocol.endings import Ending

MAX_REPETITIONS = 2000
"""Kinds of anonymous events that are counted by address. Further ones are counted for all addresses
together, so that the log is bounded however many addresses there are."""
MAX_ACCOUNT_REPETITIONS = 50_000
"""Kinds of events of users and services that are counted; further ones stand by themselves."""
MAX_SINGLE_EVENTS = 20
"""Events of a kind in a minute that stand by themselves."""
MAX_SINGLE_REQUESTS = 3
"""Of these, HTTP requests."""
HTTP_REASON = "HTTP"
"""The reason of an attempt to authenticate that came with a request."""
REPEATED_AUTHS = {"limited", "timeout"}
"""Outcomes of `auth` that an anonymous client can cause as often as it connects."""

SINGLE_ENDINGS = {
    ending.label
    for ending in (
        Ending.AUTH_FAILED,
        Ending.AUTH_UNAVAILABLE,
        Ending.INTERNAL_ERROR,
        Ending.SERVER_RESTARTING,
    )
}
"""The endings that an anonymous client cannot cause that often: bans limit failed tokens, and the
others are relay's doing."""


class EventKind(NamedTuple):
    """What events have in common that repeat each other.

    A tuple, whose hash takes no Python: it is looked up several times for each event.
    """

    what: str
    outcome: str
    reason: str
    network: str
    """The address, or the network of an IPv6 address: a client has as many as it likes there. None
    stands for all others."""
    user_id: str | None
    service: str | None

    @classmethod
    def of(cls, event: AuditEvent) -> EventKind:
        reason = "" if event.what == "takeover" else event.reason  # it names a connection
        network = _network(event.address)
        return cls(event.what, event.outcome, reason, network, event.user_id, event.service)

    @property
    def is_anonymous(self) -> bool:
        return self.user_id is None and self.service is None


@define(eq=False, repr=False)
class Repetitions:
    """The kinds of events that were recorded lately, each with the number of its repetitions."""

    _counts: dict[EventKind, int] = field(factory=dict)
    """Less than 0: so many more stand by themselves."""
    _addresses: dict[EventKind, str] = field(factory=dict)
    """The last address of each kind."""
    _anonymous: int = 0
    """Kinds of anonymous events."""

    def count(self, event: AuditEvent) -> bool:
        """Count an event if it repeats an earlier one. False: it is to be recorded by itself."""
        most = _max_single(event)
        if most is None:
            return False
        kind, address = EventKind.of(event), event.address
        if kind not in self._counts:
            if not kind.is_anonymous:
                if len(self._counts) >= MAX_REPETITIONS + MAX_ACCOUNT_REPETITIONS:
                    return False
            elif self._anonymous >= MAX_REPETITIONS:
                kind, address = kind._replace(network=""), ""
        if kind not in self._counts:
            self._counts[kind] = -most
            self._anonymous += kind.is_anonymous
        self._counts[kind] += 1
        self._addresses[kind] = address
        return self._counts[kind] > 0

    def take(self) -> list[AuditEvent]:
        """One event for each kind that was repeated; kinds that were not are forgotten."""
        repeated = {kind: times for kind, times in self._counts.items() if times > 0}
        addresses, self._addresses = self._addresses, {}
        self._counts = dict.fromkeys(repeated, 0)
        self._anonymous = sum(kind.is_anonymous for kind in repeated)
        return [
            AuditEvent(
                what=kind.what,
                outcome=kind.outcome,
                reason=f"{kind.reason}, {times} more".removeprefix(", "),
                address=addresses[kind],
                user_id=kind.user_id,
                service=kind.service,
            )
            for kind, times in repeated.items()
        ]


def _max_single(event: AuditEvent) -> int | None:
    """How many events of its kind stand by themselves; None: each one."""
    if event.is_anonymous:
        is_auth = event.what == "auth" and event.outcome in REPEATED_AUTHS
        is_close = event.what == "close" and event.reason not in SINGLE_ENDINGS
        return 1 if is_auth or is_close else None
    if (event.what, event.reason) == ("auth", HTTP_REASON):
        return MAX_SINGLE_REQUESTS
    return MAX_SINGLE_EVENTS


def _network(address: str) -> str:
    if ":" not in address:
        return address
    try:
        return str(ipaddress.IPv6Network((address.partition("%")[0], 64), strict=False))
    except ValueError:
        return address
