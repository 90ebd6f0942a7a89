"""The health check of the image finds a relay well, whatever its settings want of clients."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.integration.relay_process import PROJECT, start_relay

SCRIPT = PROJECT / "scripts" / "packaging" / "health.py"


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with TemporaryDirectory(prefix="relay-test-") as folder:
        yield Path(folder)


def ask(port: int, path: str, variables: dict[str, str]) -> tuple[int, str]:
    """The exit code of the health check with these settings of relay, and what it said."""
    done = subprocess.run(
        [sys.executable, "-IS", SCRIPT, path],
        env={"RELAY_BIND": f"0.0.0.0:{port}", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"RELAY_BASE_PATH": "/relay"},
        {"RELAY_PROXY_PROTOCOL": "true", "RELAY_TRUSTED_PROXIES": "192.0.2.7, 127.0.0.0/8"},
        {"RELAY_PROXY_PROTOCOL": "1", "RELAY_TRUSTED_PROXIES": "192.0.2.7,2001:db8::/32"},
        {"RELAY_DEV_TLS": "true"},
    ],
)
def test_a_relay_is_found_well(
    database_url: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    with start_relay("--data-dir", str(data_dir), database_url=database_url) as relay:
        assert ask(relay.port, "/health", variables) == (0, "")
        assert ask(relay.port, "/ready", variables) == (0, "")
    code, said = ask(relay.port, "/health", variables)
    assert code == 1
    assert said.startswith("relay does not answer: ")


def test_a_relay_that_refuses_the_address_lives(database_url: str) -> None:
    with start_relay("--allow-networks", "192.0.2.0/24", database_url=database_url) as relay:
        assert ask(relay.port, "/health", {}) == (0, "")
        code, said = ask(relay.port, "/ready", {})
        assert code == 1
        assert "allow_networks" in said
