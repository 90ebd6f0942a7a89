"""relay under a service manager: notifications, and the settings in docs/relay.service."""

from __future__ import annotations

import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.audit.log import AUDIT_FLUSH_TIMEOUT
from relay.postgres.embedded.cluster import CLUSTER_STOP_TIMEOUT, START_TIMEOUT
from relay.process.rlimit import SPARE_FILES
from relay.process.systemd import notify_service_manager
from relay.settings.settings import Settings

UNIT = Path(__file__).parents[3] / "docs" / "relay.service"


@pytest.fixture
def manager() -> Iterator[tuple[str, socket.socket]]:
    # The paths of sockets must be short, and those of pytest's folders are long.
    with (
        tempfile.TemporaryDirectory(prefix="relay-test-") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening,
    ):
        path = str(Path(folder) / "notify")
        listening.bind(path)
        listening.settimeout(5)
        yield path, listening


def test_the_service_manager_is_told_that_relay_is_ready(
    manager: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, listening = manager
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    notify_service_manager()
    assert listening.recv(100) == b"READY=1"


@pytest.mark.parametrize("path", ["", "vsock:2:1234", "/nowhere/at/all", "/" + "x" * 500, "@gone"])
def test_without_a_service_manager_nothing_happens(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    notify_service_manager()
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify_service_manager()


def test_a_service_manager_that_does_not_read_does_not_stop_relay(
    manager: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = manager
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    for _ in range(2000):  # more than any queue of datagrams holds
        notify_service_manager()


def unit() -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text("utf-8"), re.MULTILINE))


def test_the_unit_gives_relay_the_time_and_the_files_that_it_wants() -> None:
    settings, given = Settings(), unit()
    assert given["Type"] == "notify"
    assert int(given["TimeoutStartSec"]) > START_TIMEOUT
    assert (
        int(given["TimeoutStopSec"])
        >= settings.drain_timeout + AUDIT_FLUSH_TIMEOUT + CLUSTER_STOP_TIMEOUT
    )
    files = settings.max_connections + settings.max_unauthenticated + SPARE_FILES
    assert int(given["LimitNOFILE"]) == files


def test_the_unit_stops_relay_before_its_postgres() -> None:
    assert (unit()["KillMode"], unit()["KillSignal"]) == ("mixed", "SIGTERM")
