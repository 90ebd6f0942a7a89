"""Settings that relay starts with, and that make no sense as they are. Floor 0.

Only what somebody has set is doubted: a default that another setting makes idle is nobody's
mistake.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network

from relay.config import Configuration
from relay.settings import Settings

UNITS = {"second": 1, "minute": 60, "hour": 3600}


def doubts(configuration: Configuration) -> Iterator[str]:
    """What is worth a second look, in words."""
    settings, given = configuration.settings, configuration.sources.keys()
    yield from _unused(settings, given)
    yield from _never_reached(settings, given)
    yield from _networks_denied(settings)
    here = all(re.match(r"127\.|::1$", address.host) for address in settings.addresses)
    if settings.profile == "load" and not here:
        yield 'profile = "load" has no rates and no caps, and bind lets others connect'


def _unused(settings: Settings, given: Collection[str]) -> Iterator[str]:
    if settings.database_url:
        for name in {"postgres_bin", "data_dir"} & set(given):
            if name == "postgres_bin" or not settings.dev_tls:  # whose certificate is kept there
                yield f"{name} is for relay's own PostgreSQL, and database_url names another"
    if settings.dev_tls and settings.tls_certificate:
        yield "dev_tls does nothing beside tls_certificate"
    if "audit_days" in given and not settings.audit:
        yield "audit_days says how long the audit is kept, and audit is off"
    if "introspection_cache" in given and not settings.introspection_url:
        yield "introspection_cache does nothing without introspection_url"


def _never_reached(settings: Settings, given: Collection[str]) -> Iterator[str]:
    most = settings.max_connections
    for name in ("max_connections_per_address", "max_connections_per_user"):
        if name in given and getattr(settings, name) > most:
            yield (
                f"{name} ({getattr(settings, name)}) is never reached: max_connections is {most}"
            )
    if settings.max_message_size > settings.receive_buffer:
        yield (
            f"max_message_size ({settings.max_message_size}) is more than receive_buffer"
            f" ({settings.receive_buffer}), which is what all clients together may have half sent"
        )
    if "frame_rate" in given and _a_second(settings.frame_rate) > _a_second(settings.message_rate):
        yield (
            f"frame_rate ({settings.frame_rate}) is never reached: frames are messages, too, and"
            f" message_rate is {settings.message_rate}"
        )


def _networks_denied(settings: Settings) -> Iterator[str]:
    denied = [ip_network(each) for each in settings.deny_networks]
    for text in settings.allow_networks:
        if any(_covers(network, ip_network(text)) for network in denied):
            yield f"{text} is in allow_networks, and deny_networks denies all of it"


def _covers(network: IPv4Network | IPv6Network, other: IPv4Network | IPv6Network) -> bool:
    if isinstance(network, IPv4Network):
        return isinstance(other, IPv4Network) and other.subnet_of(network)
    return isinstance(other, IPv6Network) and other.subnet_of(network)


def _a_second(rate: str) -> float:
    number, _, unit = rate.partition("/")
    return int(number) / UNITS[unit]
