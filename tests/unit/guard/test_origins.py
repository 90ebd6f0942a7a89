"""Which pages may connect when `allow_origins` is set."""

from __future__ import annotations

import pytest

from relay.guard.access_lists import AccessLists
from relay.guard.client_address import Proxies, parse_networks
from relay.guard.guard import Guard
from relay.model.origin import normal_origin
from relay.settings.loading import load
from tests.unit.guard.test_limits import UPGRADE, Answer, converse
from tests.unit.memory import MemoryRelay

pytestmark = pytest.mark.mock_clock

LISTED = (
    "https://App.example",
    "http://localhost:8081",
    "capacitor://localhost",
    "app://-",
    "chrome-extension://abcdef",
    "file://",
    "null",
)


async def answer(relay: MemoryRelay, *headers: str, host: str = "192.0.2.1") -> int:
    head = "".join(f"{line}\r\n" for line in ("GET /streams/register HTTP/1.1", *headers))
    found = await converse(relay.connect(host=host), head.encode("latin-1") + UPGRADE)
    return found.status if isinstance(found, Answer) else found


async def status_of(relay: MemoryRelay, origin: str, host: str = "relay.example") -> int:
    return await answer(relay, f"Host: {host}", f"Origin: {origin}")


@pytest.fixture
def listed(relay: MemoryRelay) -> MemoryRelay:
    relay.guard = Guard(AccessLists(allow_origins=frozenset(LISTED)))
    return relay


@pytest.mark.parametrize(
    "origin",
    [
        *LISTED,
        "https://app.example",
        "HTTPS://APP.EXAMPLE",
        "https://app.example:443",
        "https://app.example/",
        "https://app.example:443/",
        "https://app.example.",
        "wss://app.example",
        "file:///",
        "Null",
    ],
)
async def test_a_listed_origin_may_connect_however_it_is_written(
    listed: MemoryRelay, origin: str
) -> None:
    assert await status_of(listed, origin) == 101


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://app.example",
        "https://app.example:444",
        "https://app.example:80",
        "https://app.example.evil.example",
        "https://sub.app.example",
        "http://localhost",
        "capacitor://otherhost",
        "https://app.example https://relay.example",
        "https://app.example/path",
        "https://app.example@evil.example",
        "https://user@app.example",
        "relay.example",
        "https://",
        "",
        "//relay.example",
        "capacitor://relay.example",
        "https://relay.example:8443",
        "https://relay.example.evil.example",
        "x" * 5000,
        "https://" + "\xe9" * 5000,
    ],
)
async def test_any_other_origin_is_refused(listed: MemoryRelay, origin: str) -> None:
    assert await status_of(listed, origin) == 403


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://relay.example", "relay.example"),
        ("http://relay.example", "relay.example"),
        ("https://relay.example", "Relay.Example:443"),
        ("https://relay.example:443", "relay.example"),
        ("http://192.168.1.5:3000", "192.168.1.5:3000"),
        ("http://192.168.1.5:3000/", "192.168.1.5:3000"),
        ("ws://192.168.1.5:3000", "192.168.1.5:3000"),
        ("wss://relay.example", "relay.example"),
        ("http://[::1]:3000", "[::1]:3000"),
        ("http://[0:0::1]:3000", "[::1]:3000"),
        ("http://localhost:3000", "localhost:3000"),
    ],
)
async def test_the_host_of_the_request_is_always_allowed(
    listed: MemoryRelay, origin: str, host: str
) -> None:
    assert await status_of(listed, origin, host) == 101


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://192.168.1.5:8081", "192.168.1.5:3000"),
        ("http://relay.example", "relay.example:443"),
        ("https://relay.example", "relay.example:80"),
        ("https://relay.example", ""),
        ("null", "null"),
    ],
)
async def test_another_port_of_the_host_is_another_origin(
    relay: MemoryRelay, origin: str, host: str
) -> None:
    relay.guard = Guard(AccessLists(allow_origins=frozenset(["https://app.example"])))
    assert await status_of(relay, origin, host) == 403


async def test_two_hosts_or_two_origins_are_none(listed: MemoryRelay) -> None:
    own, other = "Origin: https://relay.example", "Origin: https://evil.example"
    assert await answer(listed, "Host: relay.example", own, other) == 403
    assert await answer(listed, own) == 403


async def test_behind_a_trusted_proxy_the_host_that_it_was_asked_for_counts(
    relay: MemoryRelay,
) -> None:
    relay.guard = Guard(
        AccessLists(allow_origins=frozenset(["https://app.example"])),
        Proxies(parse_networks(["10.0.0.0/8"])),
    )
    lines = ("Host: 127.0.0.1:3000", "X-Forwarded-Host: relay.example")
    own = "Origin: https://relay.example"
    assert await answer(relay, *lines, own, host="10.0.0.1") == 101
    assert await answer(relay, *lines, own, host="192.0.2.1") == 403
    assert await answer(relay, *lines, "Origin: https://evil.example", host="10.0.0.1") == 403


async def test_a_program_that_sends_the_host_as_its_origin_is_one_that_sends_an_origin(
    relay: MemoryRelay,
) -> None:
    relay.guard = Guard(AccessLists(allow_origins=frozenset(LISTED), require_origin=True))
    assert await answer(relay, "Host: relay.example") == 403
    assert await status_of(relay, "http://relay.example") == 101


async def test_the_settings_take_whatever_an_origin_may_be() -> None:
    settings = load({"allow_origins": ",".join((*LISTED, "https://b.example/"))}, environment={})
    access = Guard.build(settings.settings).access
    assert access.allow_origins == {*map(normal_origin, LISTED), "https://b.example"}
