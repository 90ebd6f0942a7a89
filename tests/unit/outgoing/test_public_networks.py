"""The registries of IANA: every network in them, at its edges and beside them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest

from relay.outgoing.public_networks import is_public

# "Globally Reachable" in the two registries of special-purpose addresses. Where it says N/A, what
# counts is the embedded IPv4 address, or nothing is reachable any more.
IPV4_REGISTRY = {
    "0.0.0.0/8": False,
    "0.0.0.0/32": False,
    "10.0.0.0/8": False,
    "100.64.0.0/10": False,
    "127.0.0.0/8": False,
    "169.254.0.0/16": False,
    "172.16.0.0/12": False,
    "192.0.0.0/24": False,
    "192.0.0.0/29": False,
    "192.0.0.8/32": False,
    "192.0.0.9/32": True,
    "192.0.0.10/32": True,
    "192.0.0.170/32": False,
    "192.0.0.171/32": False,
    "192.0.2.0/24": False,
    "192.31.196.0/24": True,
    "192.52.193.0/24": True,
    "192.88.99.0/24": False,
    "192.88.99.2/32": False,
    "192.168.0.0/16": False,
    "192.175.48.0/24": True,
    "198.18.0.0/15": False,
    "198.51.100.0/24": False,
    "203.0.113.0/24": False,
    "224.0.0.0/4": False,  # multicast has a registry of its own
    "240.0.0.0/4": False,
    "255.255.255.255/32": False,
}
IPV6_REGISTRY = {
    "::1/128": False,
    "::/128": False,
    "64:ff9b:1::/48": False,
    "100::/64": False,
    "100:0:0:1::/64": False,
    "2001:1::1/128": True,
    "2001:1::2/128": True,
    "2001:1::3/128": True,
    "2001:2::/48": False,
    "2001:3::/32": True,
    "2001:4:112::/48": True,
    "2001:10::/28": False,
    "2001:20::/28": True,
    "2001:30::/28": True,
    "2001:db8::/32": False,
    "2620:4f:8000::/48": True,
    "3fff::/20": False,
    "5f00::/16": False,
    "fc00::/7": False,
    "fe80::/10": False,
    "fec0::/10": False,  # site-local, which is no more
    "ff00::/8": False,
    # The address space outside of 2000::/3 is reserved.
    "::/8": False,
    "100::/8": False,
    "200::/7": False,
    "400::/6": False,
    "800::/5": False,
    "1000::/4": False,
    "4000::/3": False,
    "6000::/3": False,
    "8000::/3": False,
    "a000::/3": False,
    "c000::/3": False,
    "e000::/4": False,
    "f000::/5": False,
    "f800::/6": False,
    "fe00::/9": False,
}
PUBLIC = [
    *("8.8.8.8", "1.1.1.1", "2606:4700::1111", "2a00::1", "2000::", "3ffe::1", "2001:200::1"),
    *("9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255"),
    *("128.0.0.0", "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0"),
    *("192.0.1.0", "191.255.255.255", "192.0.3.0", "192.88.98.255", "192.88.100.0"),
    *("192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "198.51.99.255"),
    *("198.51.101.0", "203.0.112.255", "203.0.114.0", "223.255.255.255", "1.0.0.0"),
    *("2001:db7:ffff::", "2001:db9::", "2003::", "3fff:1000::", "3ffe:ffff::"),
]
PRIVATE = [
    *("127.8.8.8", "169.254.169.254", "192.0.0.1", "192.0.0.11", "192.0.0.255"),
    *("::127.0.0.1", "::8.8.8.8", "::ffff:0:10.0.0.1", "::ffff:0:8.8.8.8"),
    *("64:ff9b:1::a00:1", "64:ff9b:1::808:808", "64:ff9b:1:ffff::808:808", "64:ff9b::1:0:0"),
    *("2001:1::", "2001:1::4", "2001:4:111::", "2001:4:113::", "2001:40::", "2001:1ff:ffff::"),
    *("2001:2:1::", "4000::", "1fff:ffff::"),
]


def embed(ip: IPv4Address) -> list[IPv6Address]:
    """Addresses whose packets come to this one; the other address of Teredo is public."""
    number, other = int(ip), int(IPv4Address("8.8.8.8"))
    teredo = 0x20010000 << 96
    return [
        IPv6Address(0xFFFF << 32 | number),
        IPv6Address(0x64FF9B << 96 | number),
        IPv6Address(0x2002 << 112 | number << 80 | 1),
        IPv6Address(teredo | number << 64 | other ^ 0xFFFFFFFF),
        IPv6Address(teredo | other << 64 | number ^ 0xFFFFFFFF),
    ]


def edges(network: str) -> list[IPv4Address | IPv6Address]:
    found = ip_network(network)
    return [found[0], found[-1], found[found.num_addresses // 2]]


@pytest.mark.parametrize(("network", "reachable"), [*IPV4_REGISTRY.items(), *IPV6_REGISTRY.items()])
def test_a_registered_network_is_what_its_registry_says(network: str, reachable: bool) -> None:
    registered = [*map(ip_network, (*IPV4_REGISTRY, *IPV6_REGISTRY))]
    for address in edges(network):
        narrower = [
            each
            for each in registered
            if each.version == address.version
            and address in each
            and each.prefixlen > ip_network(network).prefixlen
        ]
        if not narrower:  # which is another line of the registry
            assert is_public(address) == reachable, address


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize("address", PRIVATE)
def test_any_other_address_is_not(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", [*(each for each in PUBLIC if ":" not in each), "192.0.0.9"])
def test_an_address_that_leads_to_a_public_one_is_public(address: str) -> None:
    for outer in embed(IPv4Address(address)):
        assert is_public(outer), outer


@pytest.mark.parametrize("network", [each for each, public in IPV4_REGISTRY.items() if not public])
def test_an_address_that_leads_into_another_network_is_not(network: str) -> None:
    for address in edges(network):
        if str(address) in {"192.0.0.9", "192.0.0.10"}:
            continue
        assert isinstance(address, IPv4Address)
        for outer in embed(address):
            assert not is_public(outer), outer
