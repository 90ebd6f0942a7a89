"""relay under a path of another host, behind nginx and Caddy as docs/operations.md has them."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import trustme
from attrs import frozen
from playwright.sync_api import Browser

from tests.integration.accounts import Accounts
from tests.integration.browser import visit
from tests.integration.peers import new_stream_id
from tests.integration.proxies import CADDY, NGINX, caddy, documented, free_port, nginx
from tests.integration.relay_process import RelayProcess, start_relay

SETTINGS = {
    "nginx": ("--base-path", "/relay"),  # it passes the path on
    "caddy": ("--trusted-proxies", "127.0.0.1"),  # it removes the path, and says so
}


@frozen
class Files:
    """A certificate of the proxy, and clients' trust in it."""

    chain: Path
    key: Path
    trust: ssl.SSLContext


@pytest.fixture
def files(tmp_path: Path) -> Files:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    files = Files(tmp_path / "chain.pem", tmp_path / "key.pem", ssl.create_default_context())
    files.chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    files.key.write_bytes(issued.private_key_pem.bytes())
    authority.configure_trust(files.trust)
    return files


@contextmanager
def behind(proxy: str, files: Files, relay: RelayProcess) -> Iterator[str]:
    """The URL of a relay behind a proxy, with its path."""
    port = free_port()
    if proxy == "nginx":
        here = {
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "127.0.0.1:3000": f"127.0.0.1:{relay.port}",
            "/etc/nginx/relay/chain.pem": str(files.chain),
            "/etc/nginx/relay/key.pem": str(files.key),
        }
        running = nginx(documented("conf.d/app.conf"), here, port=port)
    else:
        here = {
            "app.example.org {": f"https://127.0.0.1:{port} {{\n\ttls {files.chain} {files.key}",
            "127.0.0.1:3000": f"127.0.0.1:{relay.port}",
        }
        running = caddy(documented("app.example.org", "caddyfile"), here, port=port)
    with running:
        yield f"https://127.0.0.1:{port}/relay/"


@pytest.mark.slow
@pytest.mark.parametrize(
    "proxy",
    [
        pytest.param("nginx", marks=pytest.mark.skipif(NGINX is None, reason="there is no nginx")),
        pytest.param("caddy", marks=pytest.mark.skipif(CADDY is None, reason="there is no Caddy")),
    ],
)
def test_the_page_and_its_links_work_under_a_path(
    proxy: str,
    files: Files,
    browser: Browser,
    database_url: str,
    accounts: Accounts,
) -> None:
    token, stream_id = accounts.session("ann"), new_stream_id()
    with (
        start_relay(*SETTINGS[proxy], database_url=database_url) as relay,
        behind(proxy, files, relay) as url,
        # Without the slash, the page's files would not be beside it.
        visit(browser, relay, url=url.rstrip("/"), ignore_https_errors=True) as phone,
        visit(browser, relay, url=url, ignore_https_errors=True) as viewer,
    ):
        assert phone.page.url == url
        phone.enter(token)
        phone.go("Broadcast")
        phone.page.get_by_label("Encoding").select_option("JPEG pictures")
        phone.broadcast(stream_id)
        viewer.watch_as(token, stream_id)
        viewer.expect_moving_picture()
        phone.page.get_by_label("Shows").select_option("still")
        phone.page.get_by_role("button", name="Make a link").click()
        link = phone.page.get_by_label("Link", exact=True).input_value()
        assert link.startswith(f"{url}streams/{stream_id}/latest.jpg?link=")
        with urlopen(link, context=files.trust) as answer:
            assert answer.read(2) == b"\xff\xd8"
        viewer.go("Operate")
        viewer.expect_text("This token cannot show statistics")
        viewer.problems.clear()  # the 403
        assert ask(f"{url}alerts", token, files.trust)["alerts"] == []


def ask(url: str, token: str, trust: ssl.SSLContext) -> Any:
    request = Request(url, headers={"Authorization": f"Bearer {token}"})
    with urlopen(request, context=trust) as answer:
        return json.load(answer)
