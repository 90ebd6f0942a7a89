"""Warnings about settings that relay starts with, but that have no effect or are risky.

There is no warning about a default that another setting makes useless: that is no mistake.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network

from relay.settings.loading import Configuration
from relay.settings.settings import Settings

UNITS = {"second": 1, "minute": 60, "hour": 3600}


def lint(configuration: Configuration) -> Iterator[str]:
    """Find settings that are worth a second look; yields a sentence about each."""
    settings, given = configuration.settings, configuration.sources.keys()
    yield from _unused(settings, given)
    yield from _unreachable_limits(settings, given)
    yield from _denied_networks(settings)
    local = all(re.match(r"127\.|::1$", address.host) for address in settings.addresses)
    if settings.profile == "load" and not local:
        yield 'profile = "load" turns off rates and caps, and bind lets other machines connect'


def _unused(settings: Settings, given: Collection[str]) -> Iterator[str]:
    if settings.database_url:
        for name in {"postgres_bin", "data_dir"} & set(given):
            if name == "postgres_bin" or not settings.dev_tls:  # whose certificate is kept there
                yield f"{name} is for relay's own PostgreSQL and has no effect with database_url"
    if settings.dev_tls and settings.tls_certificate:
        yield "dev_tls has no effect with tls_certificate"
    if "hsts_max_age" in given and not settings.tls_certificate:
        yield "hsts_max_age has no effect without tls_certificate"
    if "cluster_tls" in given and not settings.cluster_bind:
        yield "cluster_tls has no effect without cluster_bind"
    if "rendition_cores" in given and settings.renditions == "off":
        yield "rendition_cores has no effect while renditions is off"
    if "audit_days" in given and not settings.audit:
        yield "audit_days has no effect while audit is off"
    yield from _unused_questions(settings, given)


def _unused_questions(settings: Settings, given: Collection[str]) -> Iterator[str]:
    """Warn of unused settings about other servers that are asked about tokens."""
    if settings.auth_session_url:
        if "auth_token_storage" in given:
            yield "auth_token_storage has no effect with auth_session_url"
    else:
        for name in sorted({"auth_session_cache", "auth_session_recheck"} & set(given)):
            yield f"{name} has no effect without auth_session_url"
    if "unknown_token_rate" in given and not (
        settings.auth_session_url or settings.introspection_url
    ):
        yield (
            "unknown_token_rate has no effect: relay asks no other server about tokens"
            " (auth_session_url, introspection_url)"
        )
    if "introspection_cache" in given and not settings.introspection_url:
        yield "introspection_cache has no effect without introspection_url"


def _unreachable_limits(settings: Settings, given: Collection[str]) -> Iterator[str]:
    most = settings.max_connections
    for name in ("max_connections_per_address", "max_connections_per_user"):
        if name in given and getattr(settings, name) > most:
            yield f"{name} ({getattr(settings, name)}) has no effect: max_connections is {most}"
    if settings.max_message_size > settings.receive_buffer:
        yield (
            f"max_message_size ({settings.max_message_size}) is larger than receive_buffer"
            f" ({settings.receive_buffer}), the total for all clients"
        )
    if settings.frame_buffer_per_user > settings.frame_buffer and {*given} & {
        "frame_buffer",
        "frame_buffer_per_user",
    }:
        yield (
            f"frame_buffer_per_user ({settings.frame_buffer_per_user}) has no effect: frame_buffer"
            f" is {settings.frame_buffer}"
        )
    if "frame_rate" in given and _a_second(settings.frame_rate) > _a_second(settings.message_rate):
        yield (
            f"frame_rate ({settings.frame_rate}) has no effect: frames count as messages, and"
            f" message_rate is {settings.message_rate}"
        )


def _denied_networks(settings: Settings) -> Iterator[str]:
    denied = [ip_network(each) for each in settings.deny_networks]
    for text in settings.allow_networks:
        if any(_covers(network, ip_network(text)) for network in denied):
            yield f"{text} in allow_networks has no effect: deny_networks covers all of it"


def _covers(network: IPv4Network | IPv6Network, other: IPv4Network | IPv6Network) -> bool:
    if isinstance(network, IPv4Network):
        return isinstance(other, IPv4Network) and other.subnet_of(network)
    return isinstance(other, IPv6Network) and other.subnet_of(network)


def _a_second(rate: str) -> float:
    number, _, unit = rate.partition("/")
    return int(number) / UNITS[unit]
