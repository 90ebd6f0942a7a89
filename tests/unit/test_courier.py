"""Which addresses may be posted to."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from relay.courier import check_target, is_public
from relay.errors import ConfigError

PUBLIC = [
    *("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"),
]
PRIVATE = [
    *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "198.18.0.1", "192.0.2.1", "224.0.0.1", "255.255.255.255"),
    *("::", "::1", "fe80::1", "fc00::1", "ff02::1", "2001:db8::1", "::127.0.0.1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
    *("fec0::1", "64:ff9b:1::a00:1", "::ffff:0:10.0.0.1"),
    *("2002:7f00:1::", "2002:a00:1::1", "2001:0:102:304:0:0:f5ff:fffe"),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_leads_into_a_network_is_not(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "url", ["https://app.example.org/alerts?a=b", "https://[2606:4700::1111]:8443/", "https://x"]
)
def test_an_address_over_https_is_fine(url: str) -> None:
    check_target(url, plain=False)
    check_target(url, plain=True)
    check_target(url.replace("https", "http"), plain=True)
    with pytest.raises(ConfigError, match="expected https"):
        check_target(url.replace("https", "http"), plain=False)


@pytest.mark.parametrize(
    "url",
    [
        *("", "app.example.org", "https://", "https:///alerts", "ftp://x/", "file:///etc/passwd"),
        *("https://x:y@z/", "https://x@z/", "https://x/#y", "https://x/ y", "https://x/\r\nA: b"),
        *("https://x:99999/", "https://[::1/", "https://é.example.org/", f"https://x/{'y' * 2048}"),
    ],
)
def test_what_is_no_address_to_post_to_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        check_target(url, plain=True)
