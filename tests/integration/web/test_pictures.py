"""Pictures over plain HTTP, as curl, FFmpeg's demuxer and a browser get them from a real relay."""

from __future__ import annotations

import queue
import re
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from itertools import cycle, islice

import av
import pytest
import trio
from playwright.sync_api import Browser, expect
from websockets.exceptions import ConnectionClosed

from relay.demo.video import default_video, play
from relay.renditions.jpeg_header import read_size
from tests.integration.accounts import Accounts
from tests.integration.browser import visit
from tests.integration.in_process import call_relay
from tests.integration.peers import Peer, login, new_stream_id
from tests.integration.relay_process import PATIENCE, RelayProcess, start_relay

PICTURES = 5


@pytest.fixture(scope="module")
def film() -> list[bytes]:
    return [each.jpeg for each in islice(play(default_video()), 0, 20 * PICTURES, 20)]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def on_air(
    relay: RelayProcess, token: str, film: list[bytes], *, msgpack: bool = False
) -> AsyncIterator[tuple[str, Peer]]:
    """A phone that sends pictures, again and again."""
    stream_id = new_stream_id()
    async with login(relay, token, msgpack=msgpack) as phone, trio.open_nursery() as nursery:
        await phone.register(stream_id)
        for picture in film:
            await phone.send_frame(picture)

        async def go_on() -> None:
            with suppress(ConnectionClosed):
                for picture in cycle(film):
                    await trio.sleep(0.03)
                    await phone.send_frame(picture)

        nursery.start_soon(go_on)
        yield stream_id, phone
        nursery.cancel_scope.cancel()


async def command(database_url: str, *arguments: str) -> str:
    """What a command of `relay` prints."""
    call = partial(call_relay, *arguments, database_url=database_url)
    code, printed, problem = await trio.to_thread.run_sync(call)
    assert code == 0, problem
    return printed.strip()


async def make_link(database_url: str, stream_id: str, *options: str) -> str:
    """The path of a new link."""
    return await command(database_url, "link", "make", stream_id, *options)


async def run(*command: str) -> subprocess.CompletedProcess[bytes]:
    with trio.fail_after(PATIENCE):
        return await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False
        )


@pytest.mark.parametrize("msgpack", [False, True])
async def test_curl_gets_the_newest_picture(
    relay: RelayProcess, accounts: Accounts, film: list[bytes], msgpack: bool
) -> None:
    token = accounts.session()
    async with on_air(relay, token, film, msgpack=msgpack) as (stream_id, _):
        url = f"{relay.url}/streams/{stream_id}/latest.jpg?maxAge=5"
        got = await run("curl", "-sf", "-H", f"Authorization: Bearer {token}", url)
    assert (got.returncode, got.stdout in film) == (0, True)


async def test_curl_gets_mjpeg_until_it_leaves(
    relay: RelayProcess, accounts: Accounts, film: list[bytes]
) -> None:
    token = accounts.session()
    async with on_air(relay, token, film) as (stream_id, _):
        url = f"{relay.url}/streams/{stream_id}/live.mjpeg"
        header = f"Authorization: Bearer {token}"
        got = await run("curl", "-s", "--max-time", "1", "-H", header, url)
        assert got.returncode == 28  # its time was over, and nothing else
        boundary = got.stdout.partition(b"\r\n")[0]
        parts = got.stdout.split(boundary + b"\r\n")[1:-1]
        assert len(parts) > PICTURES
        assert {part.partition(b"\r\n\r\n")[2][:-2] for part in parts} <= set(film)
        with trio.fail_after(PATIENCE):
            while (await relay.stats())["streams"]["consumers"]:  # noqa: ASYNC110 (of a process)
                await trio.sleep(0.01)


async def test_ffmpeg_reads_it_with_a_link(
    relay: RelayProcess, accounts: Accounts, film: list[bytes], database_url: str
) -> None:
    async with on_air(relay, accounts.session(), film) as (stream_id, _):
        path = await make_link(database_url, stream_id, "--what", "mjpeg", "--for", "10m")

        def decode() -> list[tuple[int, int]]:
            with av.open(relay.url + path, format="mpjpeg", timeout=PATIENCE) as container:
                return [(each.width, each.height) for each in islice(container.decode(video=0), 8)]

        sizes = await trio.to_thread.run_sync(decode)
    assert len(sizes) == 8
    assert len(set(sizes)) == 1


async def test_a_link_ends_when_it_is_revoked(
    relay: RelayProcess, accounts: Accounts, film: list[bytes], database_url: str
) -> None:
    async with on_air(relay, accounts.session("lia"), film) as (stream_id, _):
        path = await make_link(database_url, stream_id, "--what", "mjpeg")
        listed = await command(database_url, "link", "list", "--user", "lia")
        link_id, capability = listed.split("\t")[0], path.partition("link=")[2]
        assert capability not in listed
        reading = trio.Event()

        async def revoke() -> None:
            await reading.wait()
            await command(database_url, "link", "revoke", link_id)

        client = await trio.open_tcp_stream("127.0.0.1", relay.port)
        async with client, trio.open_nursery() as nursery:
            nursery.start_soon(revoke)
            await client.send_all(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            with trio.fail_after(PATIENCE):
                while await client.receive_some():
                    reading.set()
        assert (await relay.get(path)).status == 401
        assert capability not in relay.log
        audited = accounts.execute("select reason, outcome from relay.audit where what = 'link'")
        assert not [each for each in audited if capability in str(each)]
        assert len(audited) >= 2


async def test_a_link_ends_with_its_maker(
    relay: RelayProcess, accounts: Accounts, film: list[bytes], database_url: str
) -> None:
    owner, guest = accounts.session("mia"), accounts.session("guest")
    async with on_air(relay, owner, film) as (stream_id, _):
        await command(database_url, "grant", "guest", stream_id)
        body = b'{"streamId": "%s", "what": "still"}' % stream_id.encode()
        made = await relay.get("/links", "POST", headers=bearer(guest), body=body)
        assert made.status == 201, made.body
        url = made.json()["url"]
        assert (await relay.get(url)).status == 200
        accounts.execute('delete from "user" where id = %s returning 1', "guest")
        assert (await relay.get(url)).status == 401


@contextmanager
def sending(relay: RelayProcess, token: str, film: list[bytes]) -> Iterator[str]:
    """A phone in a thread of its own, since a browser has this one; gives the id of its stream."""
    began: queue.Queue[str] = queue.Queue()
    over = threading.Event()

    async def send() -> None:
        async with on_air(relay, token, film) as (stream_id, _):
            began.put(stream_id)
            while not over.is_set():  # noqa: ASYNC110 (of a thread)
                await trio.sleep(0.05)

    thread = threading.Thread(target=trio.run, args=[send])
    thread.start()
    try:
        yield began.get(timeout=PATIENCE)
    finally:
        over.set()
        thread.join()


def test_a_browser_shows_it_in_a_page_of_another_origin(
    browser: Browser, relay: RelayProcess, accounts: Accounts, film: list[bytes], database_url: str
) -> None:
    with sending(relay, accounts.session("zoe"), film) as stream_id:
        make = partial(call_relay, "link", "make", stream_id, database_url=database_url)
        urls = [relay.url + make("--what", what)[1].strip() for what in ("still", "mjpeg")]
        page = browser.new_page()
        page.set_default_timeout(PATIENCE * 1000)
        page.set_content("".join(f'<img width="320" src="{url}">' for url in urls))
        page.wait_for_function("() => [...document.images].every(image => image.naturalWidth > 0)")
        live = page.locator("img").nth(1)
        first = live.screenshot()
        for _ in range(100):
            if live.screenshot() != first:
                break
        else:
            pytest.fail("the picture does not move")
        page.close()


async def test_smaller_pictures_are_made_by_the_renditions(
    accounts: Accounts, database_url: str, film: list[bytes]
) -> None:
    pytest.importorskip("simplejpeg")
    width, height = read_size(film[0]) or (0, 0)
    token = accounts.session("sam")
    with start_relay(database_url=database_url) as relay:
        async with on_air(relay, token, film) as (stream_id, _):
            path, header = f"/streams/{stream_id}", bearer(token)
            for wanted in (160, 320):
                still = await relay.get(f"{path}/latest.jpg?width={wanted}", headers=header)
                assert still.status == 200, still.body
                made = read_size(still.body) or (0, 0)
                assert made[0] < width
                assert made[0] / made[1] == pytest.approx(width / height, rel=0.05)
            command = ["curl", "-s", "--max-time", "3", "-H", f"Authorization: Bearer {token}"]
            got = await run(*command, f"{relay.url}{path}/live.mjpeg?width=320")
    boundary = got.stdout.partition(b"\r\n")[0]
    parts = got.stdout.split(boundary + b"\r\n")[1:-1]
    sizes = [read_size(part.partition(b"\r\n\r\n")[2]) or (0, 0) for part in parts]
    assert len(sizes) > 3
    assert min(sizes)[0] < width
    assert sizes[-1][0] < width  # the first may come before the smaller ones are made


async def test_in_a_cluster_any_node_has_them(
    accounts: Accounts, database_url: str, film: list[bytes]
) -> None:
    cluster = ("--cluster-bind", "127.0.0.1:0", "--offline-grace", "0.1")
    with (
        start_relay(*cluster, database_url=database_url) as first,
        start_relay(*cluster, database_url=database_url) as second,
    ):
        token = accounts.session("kim")
        async with on_air(first, token, film, msgpack=True) as (stream_id, _):
            path, header = f"/streams/{stream_id}", bearer(token)
            for query in ("", "?maxAge=5"):
                still = await second.get(f"{path}/latest.jpg{query}", headers=header)
                assert (still.status, still.body in film) == (200, True)
            link = await make_link(database_url, stream_id, "--what", "mjpeg")
            one_second = ("curl", "-s", "--max-time", "1")
            got = await run(*one_second, second.url + link)
            assert got.stdout.count(b"image/jpeg") > PICTURES, got.stdout
            link = await make_link(database_url, stream_id, "--what", "mjpeg", "--readers", "1")
            reader = await trio.open_tcp_stream("127.0.0.1", first.port)
            await reader.send_all(f"GET {link} HTTP/1.0\r\n\r\n".encode())
            assert b"200 OK" in await reader.receive_some()
            assert (await second.get(link)).status == 429
            await reader.aclose()
            with trio.fail_after(PATIENCE):
                while b"image/jpeg" not in (await run(*one_second, second.url + link)).stdout:
                    pass
            stranger = accounts.session("stranger")
            others = await second.get(f"{path}/latest.jpg", headers=bearer(stranger))
            assert others.status == 404


async def test_when_relay_stops_an_answer_ends(
    accounts: Accounts, database_url: str, film: list[bytes]
) -> None:
    token = accounts.session("end")
    with start_relay(database_url=database_url) as relay:
        async with on_air(relay, token, film) as (stream_id, _):
            client = await trio.open_tcp_stream("127.0.0.1", relay.port)
            head = f"GET /streams/{stream_id}/live.mjpeg HTTP/1.1\r\nHost: x\r\n"
            await client.send_all(f"{head}Authorization: Bearer {token}\r\n\r\n".encode())
            assert b"200 OK" in await client.receive_some()
            relay.signal(signal.SIGTERM)
            with trio.fail_after(PATIENCE):
                while await client.receive_some():
                    pass
            await client.aclose()
        assert await relay.ended() == 0


def test_the_page_makes_links_to_ones_own_stream_and_revokes_them(
    browser: Browser, relay: RelayProcess, accounts: Accounts
) -> None:
    stream_id = new_stream_id()
    with visit(browser, relay) as phone:
        phone.enter(accounts.session("pia"))
        phone.go("Broadcast")
        phone.page.get_by_label("Encoding").select_option("JPEG pictures")
        phone.broadcast(stream_id)
        phone.page.get_by_label("Shows").select_option("Single pictures")
        phone.page.get_by_role("button", name="Make a link").click()
        address = phone.page.get_by_label("Link", exact=True)
        expect(address).to_have_value(re.compile(f"^{relay.url}/streams/{stream_id}/latest.jpg"))
        url = f"{address.input_value()}&maxAge=10"  # which wakes the camera
        assert phone.context.request.get(url).status == 200
        phone.page.get_by_role("button", name="Revoke").click()
        phone.expect_text("The link is revoked.")
        assert phone.context.request.get(url).status == 401
        # Those of before are listed, without what lets somebody in.
        phone.page.get_by_role("button", name="Make a link").click()
        kept = f"{address.input_value()}&maxAge=10"
        assert phone.context.request.get(kept).status == 200
        phone.page.get_by_role("button", name="Stop").click()
        phone.page.get_by_role("button", name="Start broadcasting").click()
        expect(phone.page.get_by_text("Single pictures (")).to_be_visible()
        assert "link=" not in phone.page.locator(".links").inner_html()
        phone.page.get_by_role("button", name="Revoke Single pictures").click()
        phone.expect_text("The link is revoked.")
        assert phone.context.request.get(kept).status == 401
