"""relay under a path: by its setting, or by what a trusted proxy says that it has removed."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from relay.connection.admission import PATHS
from relay.guard.client_address import ClientAddress, Proxies, parse_networks
from relay.guard.guard import Guard
from relay.model.base_path import OWN_SEGMENTS, is_base_path, path_below
from relay.web.assets import load_assets
from tests.unit.memory import MemoryRelay
from tests.unit.web.pictures.gallery import answer, open_gallery, picture, send_picture

mock_clock = pytest.mark.mock_clock

PROXY = "192.0.2.1"
TRUSTED = parse_networks([PROXY])
GOOD = ("/relay", "/a/b/c", "/Relay-1.0_x~y", "/...", "/a/.b", "/" + 254 * "a")
BAD = (
    "relay",
    "/",
    "/relay/",
    "//relay",
    "/relay//x",
    "/../x",
    "/relay/..",
    "/.",
    "/a b",
    "/a,/b",
    "/%72elay",
    '/"><script>',
    "/relay?x",
    "/relay#x",
    "/rélay",
    "/relay\n",
    "https://evil.example",
    "//evil.example",
    "/\\evil.example",
    "/" + 255 * "a",
    "/streams",
    "/streams/x",
    "/page",
    "/relay-client.js",
)


@pytest.mark.parametrize("path", ["", *GOOD])
def test_a_base_path_is_made_of_plain_segments(path: str) -> None:
    assert is_base_path(path)


@pytest.mark.parametrize("path", BAD)
def test_nothing_else_is_a_base_path(path: str) -> None:
    assert not is_base_path(path)


@mock_clock
async def test_no_base_path_begins_as_a_path_of_relay_does(relay: MemoryRelay) -> None:
    open_gallery(relay)
    assert relay.http is not None
    paths = [*(each.path for each in cast("Any", relay.http._app).routes), *PATHS]
    assert {path.split("/")[1] for path in paths} - {""} == OWN_SEGMENTS


@given(st.text())
def test_no_base_path_has_a_character_that_means_something(text: str) -> None:
    allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/-._~"
    assert not is_base_path(text) or set(text) <= set(allowed)


@pytest.mark.parametrize(
    ("path", "below"),
    [("/relay/health", "/health"), ("/health", "/health"), ("/relayed/health", "/relayed/health")],
)
def test_a_path_may_come_with_the_base_path_or_without(path: str, below: str) -> None:
    assert path_below("/relay", path) == below


def named(nearest: str, *lines: str, base_path: str = "") -> str:
    head = "\r\n".join(("GET / HTTP/1.1", *lines, "", "")).encode("latin-1")
    return Proxies(TRUSTED, base_path=base_path).base_path_for(ClientAddress.parse(nearest), head)


@pytest.mark.parametrize("path", GOOD)
def test_a_trusted_proxy_may_name_the_path(path: str) -> None:
    assert named(PROXY, f"x-forwarded-prefix: {path}") == path


@pytest.mark.parametrize("path", [path for path in BAD if path != "/relay\n"])
def test_what_is_no_path_is_ignored(path: str) -> None:
    assert named(PROXY, f"X-Forwarded-Prefix: {path}") == ""


def test_nobody_else_may_name_it_and_nobody_names_two() -> None:
    assert named("192.0.2.2", "X-Forwarded-Prefix: /relay") == ""
    assert named(PROXY, "X-Forwarded-Prefix: /a", "X-Forwarded-Prefix: /b") == ""


def test_the_setting_is_the_last_word() -> None:
    assert named(PROXY, "X-Forwarded-Prefix: /other", base_path="/relay") == "/relay"
    assert named("192.0.2.2", base_path="/relay") == "/relay"


@pytest.fixture
async def below(relay: MemoryRelay) -> MemoryRelay:
    relay.guard = Guard(proxies=Proxies(TRUSTED, base_path="/relay"))
    open_gallery(relay)
    return relay


@mock_clock
async def test_all_is_below_the_path_and_where_a_proxy_has_removed_it(below: MemoryRelay) -> None:
    for path in ("/relay/health", "/health"):
        assert (await answer(below, path)).status == 200
    for path in ("/relay/relay/health", "/relayhealth", "/other/health"):
        assert (await answer(below, path)).status == 404


@mock_clock
async def test_the_page_is_below_it_since_it_names_files_beside_itself(below: MemoryRelay) -> None:
    beside = await answer(below, "/relay")
    assert (beside.status, beside.headers["location"]) == (308, "/relay/")
    page = await answer(below, "/relay/")
    assert page.status == 200
    content = await page.body()
    assert b'src="/' not in content
    assert b'href="/' not in content


@mock_clock
async def test_an_address_with_two_slashes_redirects_nowhere_else(below: MemoryRelay) -> None:
    for path in ("//relay", "//evil.example", "/relay//evil.example"):
        assert (await answer(below, path)).status == 404


@mock_clock
@pytest.mark.parametrize("path", ["/relay/streams/subscribe?stream=a", "/streams/register"])
async def test_websockets_are_below_it_too(below: MemoryRelay, path: str) -> None:
    assert await upgrade(below, path) == 101


@mock_clock
@pytest.mark.parametrize(
    "path", ["/relay/relay/streams/subscribe", "/relay", "/x/streams/register"]
)
async def test_no_websocket_is_elsewhere(below: MemoryRelay, path: str) -> None:
    assert await upgrade(below, path) == 404


async def upgrade(relay: MemoryRelay, path: str) -> int:
    client = relay.connect()
    await client.send_bytes(
        f"GET {path} HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    await wait_all_tasks_blocked()
    return int(bytes(client.link.incoming.content).split(b" ", 2)[1])


@mock_clock
async def test_links_lead_below_the_path(relay: MemoryRelay) -> None:
    """Also below one that a proxy names, which is asked for as the proxy asks."""
    relay.guard = Guard(proxies=Proxies(parse_networks(["192.0.2.7"])))
    open_gallery(relay)
    await send_picture(await relay.phone(), picture())
    body = {"streamId": "front-door", "what": "still"}
    headers = {"X_Forwarded_Prefix": "/apps/relay"}
    made = await answer(relay, "/links", method="POST", body=body, **headers)
    url = json.loads(await made.body())["url"]
    assert url.startswith("/apps/relay/streams/front-door/latest.jpg?link=")
    inner = url.removeprefix("/apps/relay")
    assert (await answer(relay, inner, token=None, **headers)).status == 200
    # Some proxies name the path and leave it there.
    assert (await answer(relay, url, token=None, **headers)).status == 200
    assert (await answer(relay, url, token=None)).status == 404
    bad = await answer(relay, "/links", method="POST", body=body, X_Forwarded_Prefix="/a b")
    assert json.loads(await bad.body())["url"].startswith("/streams/")


def test_pages_of_named_origins_may_show_the_page_in_a_frame() -> None:
    policy = load_assets()["/"].headers["Content-Security-Policy"]
    assert policy.endswith("; frame-ancestors 'none'")
    origins = ("https://App.example.org:443", "http://localhost:5173")
    policy = load_assets(origins)["/"].headers["Content-Security-Policy"]
    assert policy.endswith("; frame-ancestors https://app.example.org http://localhost:5173")


def test_pages_of_all_origins_may_import_the_player_and_nothing_of_the_page() -> None:
    for path, asset in load_assets().items():
        is_open = asset.headers.get("Access-Control-Allow-Origin") == "*"
        assert is_open == (path.startswith(("/relay-", "/core/", "/player/"))), path
