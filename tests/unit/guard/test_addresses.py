from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.guard.access_lists import AccessLists
from relay.guard.client_address import ClientAddress, Proxies, parse_networks

PROXY, STRANGER = "10.0.0.1", "192.0.2.9"
PROXIES = Proxies(parse_networks(["10.0.0.0/8", "2001:db8:1::/48"]), speak_proxy_protocol=True)


def head(*lines: str) -> bytes:
    return "\r\n".join(["GET /streams/subscribe HTTP/1.1", *lines, "", ""]).encode("latin-1")


def client(nearest: str, *lines: str) -> str:
    return PROXIES.client_behind(ClientAddress.parse(nearest), head(*lines)).text


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("unix", "unix"),
    ],
)
def test_limits_count_ipv4_by_address_and_ipv6_by_home(text: str, key: str) -> None:
    assert ClientAddress.parse(text).key == key


@pytest.mark.parametrize(
    ("peer", "text"),
    [("192.0.2.1:80", "192.0.2.1"), ("::1:80", "::1"), ("fe80::1%eth0:80", "fe80::1")],
)
def test_the_other_side_of_a_link_has_an_address_and_a_port(peer: str, text: str) -> None:
    assert ClientAddress.of_peer(peer).text == text


def test_a_stranger_s_word_is_not_taken() -> None:
    assert client(STRANGER, "X-Forwarded-For: 192.0.2.1") == STRANGER


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ((), PROXY),
        (("X-Forwarded-For: 192.0.2.1",), "192.0.2.1"),
        (("x-forwarded-for :  192.0.2.1\t",), "192.0.2.1"),
        (("X-Forwarded-For: 198.51.100.7, 192.0.2.1",), "192.0.2.1"),
        (("X-Forwarded-For: 198.51.100.7, 192.0.2.1, 10.2.3.4, 10.9.9.9",), "192.0.2.1"),
        (("X-Forwarded-For: 198.51.100.7", "X-Forwarded-For: 192.0.2.1"), "192.0.2.1"),
        (("X-Forwarded-For: 192.0.2.1", "X-Forwarded-For: 10.0.0.7"), "192.0.2.1"),
        (("X-Forwarded-For: 192.0.2.1, 2001:db8:1::7",), "192.0.2.1"),
        (("X-Forwarded-For: 10.0.0.3, 10.0.0.2",), "10.0.0.3"),
        (("X-Forwarded-For: 192.0.2.1:4711",), "192.0.2.1"),
        (("X-Forwarded-For: [2001:db8::1]:4711",), "2001:db8::1"),
        (("X-Forwarded-For: 2001:db8::1",), "2001:db8::1"),
        (("X-Forwarded-For: ::ffff:192.0.2.1",), "192.0.2.1"),
        (("X-Forwarded-For: unknown",), PROXY),
        (("X-Forwarded-For: 192.0.2.1, unknown",), PROXY),
        (("X-Forwarded-For: 192.0.2.1,",), PROXY),
        (("X-Forwarded-For: 192.0.2.1, \xff\xfe, 10.0.0.2",), "10.0.0.2"),
        (("X-Forwarded-For: " + "1," * 5000,), PROXY),
        (("X-Forwarded-Fore: 192.0.2.1",), PROXY),
        (("A: X-Forwarded-For: 192.0.2.1",), PROXY),
    ],
)
def test_the_last_address_that_a_trusted_proxy_named_is_the_client_s(
    lines: tuple[str, ...], found: str
) -> None:
    assert client(PROXY, *lines) == found


@given(st.binary(), st.sampled_from([PROXY, STRANGER]))
def test_no_head_makes_it_fail(content: bytes, nearest: str) -> None:
    found = PROXIES.client_behind(
        ClientAddress.parse(nearest), b"GET / HTTP/1.1\r\nX-Forwarded-For: " + content
    )
    assert found.ip is not None


def test_only_trusted_proxies_owe_a_proxy_header() -> None:
    assert PROXIES.owe_header(ClientAddress.parse(PROXY))
    assert not PROXIES.owe_header(ClientAddress.parse(STRANGER))
    assert not Proxies(PROXIES.trusted).owe_header(ClientAddress.parse(PROXY))


@pytest.mark.parametrize(
    ("allow", "deny", "admitted"),
    [
        ([], [], True),
        (["192.0.2.0/24"], [], True),
        (["198.51.100.0/24", "2001:db8::/32"], [], False),
        ([], ["192.0.2.9"], False),
        (["192.0.2.0/24"], ["192.0.2.8/31"], False),
        (["0.0.0.0/0"], ["2001:db8::/32"], True),
        (["::/0"], [], False),
    ],
)
def test_a_network_is_admitted_by_both_lists(
    allow: list[str], deny: list[str], admitted: bool
) -> None:
    lists = AccessLists(parse_networks(allow), parse_networks(deny))
    assert lists.allows(ClientAddress.parse(STRANGER)) == admitted


def test_what_has_no_ip_address_is_in_no_network() -> None:
    here = ClientAddress.parse("unix")
    assert AccessLists().allows(here)
    assert not AccessLists(allow_networks=parse_networks(["0.0.0.0/0", "::/0"])).allows(here)


@pytest.mark.parametrize(
    ("lines", "admitted", "where_required"),
    [
        ((), True, False),
        (("Origin: https://example.org",), True, True),
        (("oRiGiN: HTTPS://Example.ORG",), True, True),
        (("Origin: https://example.org:8443",), False, False),
        (("Origin: http://example.org",), False, False),
        (("Origin: https://example.org.evil.test",), False, False),
        (("Origin: null",), False, False),
        (("Origin:",), False, False),
        (("Origin: https://evil.test", "Origin: https://example.org"), False, False),
    ],
)
def test_a_page_is_admitted_by_its_origin(
    lines: tuple[str, ...], admitted: bool, where_required: bool
) -> None:
    origins = frozenset(["https://example.org"])
    assert AccessLists(allow_origins=origins).allows_origin(head(*lines)) == admitted
    strict = AccessLists(allow_origins=origins, require_origin=True)
    assert strict.allows_origin(head(*lines)) == where_required


def test_without_a_list_every_page_is_admitted() -> None:
    assert AccessLists().allows_origin(head("Origin: https://anywhere.test"))


def test_long_texts_are_read_each_time_and_not_kept() -> None:
    long = "x" * 10_000
    assert ClientAddress.parse(long) == ClientAddress(long, long)
    assert ClientAddress.parse("192.0.2.7") is ClientAddress.parse("192.0.2.7")
    assert ClientAddress.parse(long) is not ClientAddress.parse(long)
