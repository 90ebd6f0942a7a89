"""All limits of one relay, as the settings give them."""

from __future__ import annotations

import structlog
from attrs import define, field, frozen

from relay.concurrency.round_limiter import RoundLimiter
from relay.guard.access_lists import AccessLists
from relay.guard.client_address import ClientAddress, Proxies, parse_networks
from relay.guard.connection_limits import Caps, ConnectionLimits, LimitedConnection
from relay.guard.failed_auths import CountedElsewhere, FailedAuths
from relay.guard.rates import RateLimiter
from relay.guard.throttle import Throttle, ThrottleRates
from relay.metrics import Limit
from relay.protocol.endings import Ending
from relay.protocol.messages import ErrorCode
from relay.settings.settings import Settings
from relay.transport.handshake.head import refusal

log = structlog.get_logger()


@frozen
class AdmissionRefusal:
    """Why a request is refused, and the HTTP response that says so."""

    limit: Limit
    ending: Ending
    response: bytes


@frozen
class SessionLimits:
    """What authenticated clients may do. None means no limit."""

    max_subscriptions: int | None = None
    """Per connection."""
    max_subscriptions_of_user: int | None = None
    """On all connections of a user."""
    max_streams: int | None = None
    """Online at a time, per user."""
    register_rate: RateLimiter | None = None
    """Per user."""
    alert_rate: RateLimiter | None = None
    """Per sender, over WebSocket and HTTP together."""
    stream_list_rate: RateLimiter | None = None
    """Per user or service, over WebSocket and HTTP together."""
    request_rate: RateLimiter | None = None
    """HTTP requests, per user or service."""


@define(eq=False, repr=False)
class Guard:
    """The limits of one relay. None means no limit."""

    access: AccessLists = field(factory=AccessLists)
    proxies: Proxies = field(factory=Proxies)
    connections: ConnectionLimits = field(factory=ConnectionLimits)
    round_limiter: RoundLimiter = field(factory=RoundLimiter)
    connection_rate: RateLimiter | None = None
    """New connections, per address."""
    failed_auths: FailedAuths | None = None
    renewal_rate: RateLimiter | None = None
    """Per user or service."""
    throttle_rates: ThrottleRates | None = None
    """Per connection."""
    session_limits: SessionLimits = field(factory=SessionLimits)
    _anonymous_lines: RateLimiter = field(factory=lambda: RateLimiter("10/minute"))
    """Lines of the log, per address, about connections that were not authenticated."""
    _anonymous_lines_in_all: RateLimiter = field(factory=lambda: RateLimiter("600/minute"))

    @classmethod
    def build(cls, settings: Settings, elsewhere: CountedElsewhere | None = None) -> Guard:
        """The limits of the settings. `profile = "load"` lifts all rates and caps.

        Failed attempts to authenticate are counted `elsewhere`, if that is given.
        """
        access = AccessLists(
            parse_networks(settings.allow_networks),
            parse_networks(settings.deny_networks),
            frozenset(settings.allow_origins),
            settings.require_origin,
        )
        proxies = Proxies(
            parse_networks(settings.trusted_proxies),
            settings.proxy_protocol,
            settings.base_path or "",
        )
        if settings.profile == "load":
            log.warning("PROFILE LOAD: no rates and no caps; never where strangers can connect")
            return cls(access, proxies)
        caps = Caps(
            settings.max_connections,
            settings.max_connections_per_address,
            settings.max_connections_per_user,
            settings.max_unauthenticated,
            settings.crowded_user,
        )
        return cls(
            access,
            proxies,
            ConnectionLimits(caps),
            connection_rate=RateLimiter(settings.connection_rate),
            failed_auths=FailedAuths(
                RateLimiter(settings.failed_auth_rate),
                RateLimiter(settings.failed_token_rate),
                settings.ban_time,
                RateLimiter(settings.unknown_token_rate)
                if settings.auth_session_url or settings.introspection_url
                else None,
                elsewhere,
            ),
            renewal_rate=RateLimiter(settings.renewal_rate),
            throttle_rates=ThrottleRates(
                settings.message_rate, settings.frame_rate, settings.byte_rate
            ),
            session_limits=SessionLimits(
                settings.max_subscriptions,
                settings.max_subscriptions_per_user,
                settings.max_streams_per_user,
                RateLimiter(settings.register_rate),
                RateLimiter(settings.alert_rate),
                RateLimiter(settings.stream_list_rate),
                RateLimiter(settings.request_rate),
            ),
        )

    def throttle(self) -> Throttle | None:
        """The throttle of a new connection."""
        return None if self.throttle_rates is None else Throttle(self.throttle_rates)

    def count_without_request(self, address: ClientAddress) -> None:
        """Count a connection that ended before its request had come.

        A trusted proxy is not counted: nobody knows whose connection it was.
        """
        if self.connection_rate is not None and not address.is_in(self.proxies.trusted):
            self.connection_rate.hit(address.key)

    def may_log(self, address: ClientAddress) -> bool:
        """Count a line of the log about a connection that is not authenticated; returns whether to
        write it. There is no end of them when somebody only connects."""
        allowed = self._anonymous_lines.hit(address.key) is None
        return allowed and self._anonymous_lines_in_all.hit("") is None

    def admit(
        self,
        connection: LimitedConnection,
        address: ClientAddress,
        head: bytes,
        *,
        upgrade: bool,
        behind_proxy: bool = False,
    ) -> AdmissionRefusal | None:
        """Admit a request, or say why it is refused. An admitted upgrade counts as a connection.

        `behind_proxy` tells that a trusted proxy sent it.
        """
        if not self.access.allows(address):
            return _forbid(Limit.NETWORK, f"Clients from {address} may not connect")
        if upgrade and not self.access.allows_origin(head, behind_proxy=behind_proxy):
            return _forbid(Limit.ORIGIN, "Pages from this origin may not connect")
        if self.connection_rate is not None:
            wait = self.connection_rate.hit(address.key)
            if wait is not None:
                text = f"Too many new connections from {address.key}"
                return _refuse(429, Limit.NEW_CONNECTIONS, Ending.RATE_LIMITED, text, wait)
        exceeded = self.connections.admit(connection, address.key) if upgrade else None
        if exceeded is not None:
            ours = exceeded is Limit.CONNECTIONS
            text = f"There are too many connections{'' if ours else f' from {address.key}'}"
            return _refuse(503, exceeded, Ending.TOO_MANY_CONNECTIONS, text)
        return None


def _forbid(limit: Limit, text: str) -> AdmissionRefusal:
    return AdmissionRefusal(limit, Ending.FORBIDDEN, refusal(403, ErrorCode.UNAUTHORIZED, text))


def _refuse(
    status: int, limit: Limit, ending: Ending, text: str, wait: float | None = None
) -> AdmissionRefusal:
    goodbye = ending.value
    assert goodbye.error is not None
    retry_after = goodbye.retry_after if wait is None else max(1, round(wait * 1000))
    response = refusal(status, goodbye.error, text, retry_after=retry_after)
    return AdmissionRefusal(limit, ending, response)
