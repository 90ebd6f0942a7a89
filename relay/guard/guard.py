"""All that keeps a relay usable when some of those who come are many, mean or broken. Floor 2."""

from __future__ import annotations

from attrs import define, field, frozen

from relay.closing import Ending
from relay.guard.address import ClientAddress, Proxies, parse_networks
from relay.guard.attempts import Attempts
from relay.guard.crowd import Caps, Crowd, Member
from relay.guard.lists import Lists
from relay.guard.rates import Rate
from relay.guard.throttle import Allowance, Throttle
from relay.guard.turnstile import Turnstile
from relay.metrics import Limit
from relay.protocol.messages import ErrorCode
from relay.settings import Settings
from relay.transport.head import refusal


@frozen
class Refusal:
    """Why somebody does not come in, and the HTTP answer that says so."""

    limit: Limit
    ending: Ending
    response: bytes


@define(eq=False)
class Guard:
    """The limits of one relay. What is None is not limited."""

    lists: Lists = field(factory=Lists)
    proxies: Proxies = field(factory=Proxies)
    crowd: Crowd = field(factory=Crowd)
    turnstile: Turnstile = field(factory=Turnstile)
    arrivals: Rate | None = None
    """New connections of an address."""
    attempts: Attempts | None = None
    renewals: Rate | None = None
    """Of a user or service."""
    allowance: Allowance | None = None
    """Of each connection."""

    @classmethod
    def build(cls, settings: Settings) -> Guard:
        """As the settings say; the profile for load tests lifts all rates and caps."""
        lists = Lists(
            parse_networks(settings.allow_networks),
            parse_networks(settings.deny_networks),
            frozenset(map(str.lower, settings.allow_origins)),
            settings.require_origin,
        )
        proxies = Proxies(parse_networks(settings.trusted_proxies), settings.proxy_protocol)
        if settings.profile == "load":
            return cls(lists, proxies)
        caps = Caps(
            settings.max_connections,
            settings.max_connections_per_address,
            settings.max_connections_per_user,
            settings.max_unauthenticated,
            settings.crowded_user,
        )
        return cls(
            lists,
            proxies,
            Crowd(caps),
            arrivals=Rate(settings.connection_rate),
            attempts=Attempts(
                Rate(settings.failed_auth_rate),
                Rate(settings.failed_token_rate),
                settings.ban_time,
            ),
            renewals=Rate(settings.renewal_rate),
            allowance=Allowance(settings.message_rate, settings.frame_rate, settings.byte_rate),
        )

    def throttle(self) -> Throttle | None:
        """For a new connection."""
        return None if self.allowance is None else Throttle(self.allowance)

    def judge(
        self, member: Member, address: ClientAddress, head: bytes, *, upgrade: bool
    ) -> Refusal | None:
        """Let a request in, or say why not. An upgrade that is let in counts as a connection."""
        if not self.lists.admit(address):
            return _forbid(Limit.NETWORK, f"Clients may not come from {address}")
        if upgrade and not self.lists.admit_page(head):
            return _forbid(Limit.ORIGIN, "Pages from this origin may not connect")
        if self.arrivals is not None:
            wait = self.arrivals.hit(address.key)
            if wait is not None:
                text = f"Too many new connections from {address.key}"
                return _refuse(429, Limit.NEW_CONNECTIONS, Ending.RATE_LIMITED, text, wait)
        crowded = self.crowd.admit(member, address.key) if upgrade else None
        if crowded is not None:
            ours = crowded is Limit.CONNECTIONS
            text = f"There are too many connections{'' if ours else f' from {address.key}'}"
            return _refuse(503, crowded, Ending.TOO_MANY_CONNECTIONS, text)
        return None


def _forbid(limit: Limit, text: str) -> Refusal:
    return Refusal(limit, Ending.FORBIDDEN, refusal(403, ErrorCode.UNAUTHORIZED, text))


def _refuse(
    status: int, limit: Limit, ending: Ending, text: str, wait: float | None = None
) -> Refusal:
    goodbye = ending.value
    assert goodbye.error is not None
    retry_after = goodbye.retry_after if wait is None else max(1, round(wait * 1000))
    return Refusal(limit, ending, refusal(status, goodbye.error, text, retry_after=retry_after))
