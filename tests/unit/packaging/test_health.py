"""What the image's health check says of a relay that is well, unwell, elsewhere, or away."""

from __future__ import annotations

import importlib.util
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType

import pytest
import trustme

SCRIPT = Path(__file__).parents[3] / "scripts" / "packaging" / "health.py"


@pytest.fixture
def health() -> ModuleType:
    spec = importlib.util.spec_from_file_location("health", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Relay(BaseHTTPRequestHandler):
    """Alive, and not ready."""

    def do_GET(self) -> None:
        self.send_response({"/health": 200, "/ready": 503}[self.path])
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Relay) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def check(health: ModuleType, monkeypatch: pytest.MonkeyPatch, bind: str, *words: str) -> int:
    monkeypatch.setenv("RELAY_BIND", bind)
    monkeypatch.setattr("sys.argv", ["health.py", *words])
    code: int = health.main()
    return code


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_relay_that_is_alive_is_well(
    health: ModuleType, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    with serving() as port:
        assert check(health, monkeypatch, f"{host}:{port}") == 0
        assert check(health, monkeypatch, f"{host}:{port}", "/ready") == 1


@pytest.mark.parametrize("variable", ["RELAY_TLS_CERTIFICATE", "RELAY_DEV_TLS"])
def test_tls_is_spoken_where_relay_speaks_it(
    health: ModuleType, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("relay.example.org").configure_cert(server)
    with serving(server) as port:
        monkeypatch.setenv(variable, "true")
        assert check(health, monkeypatch, f"127.0.0.1:{port}") == 0
        monkeypatch.delenv(variable)
        assert check(health, monkeypatch, f"127.0.0.1:{port}") == 1


@pytest.mark.parametrize("bind", ["127.0.0.1:1", "nonsense", "[::1]:1"])
def test_a_relay_that_does_not_answer_is_not_well(
    health: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bind: str,
) -> None:
    assert check(health, monkeypatch, bind) == 1
    assert "relay does not answer" in capsys.readouterr().err
