"""What the doctor says of a machine whose relays serve together."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from relay.doctor import cluster
from relay.doctor.checks import Finding, Outcome
from relay.doctor.cluster import ClusterChecks, look_at_buffers
from relay.settings.settings import Settings
from relay.transport.link import UNIX_SEND_BUFFER_BYTES


async def port(settings: Settings) -> Finding:
    (check,) = ClusterChecks(settings).checks()
    assert check.name == "cluster-port"
    return await check.look()


def test_one_relay_alone_has_nothing_to_check() -> None:
    assert ClusterChecks(Settings()).checks() == []


@pytest.mark.parametrize(
    ("host", "advertised", "database", "outcome", "said"),
    [
        ("127.0.0.1", None, "db.invalid", Outcome.OK, "are told 127.0.0.1:0"),
        ("0.0.0.0", "10.0.0.5:3100", "127.0.0.1", Outcome.OK, "are told 10.0.0.5:3100"),
        ("0.0.0.0", None, "127.0.0.1", Outcome.WARN, "are told 127.0.0.1:0, which leads them to"),
        ("0.0.0.0", "localhost:3100", "10.0.0.1", Outcome.WARN, "are told localhost:3100"),
    ],
)  # fmt: skip
async def test_an_address_that_leads_others_to_themselves_is_found(
    host: str, advertised: str | None, database: str, outcome: Outcome, said: str
) -> None:
    found = await port(
        Settings(
            database_url=f"postgresql://relay@{database}/app",
            cluster_bind=f"{host}:0",
            cluster_advertise=advertised,
        )
    )
    assert found.outcome is outcome
    assert said in found.said


async def test_a_port_that_another_program_has_is_a_failure() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        socket.create_server(("127.0.0.1", 0)) as free,
    ):
        free_port = free.getsockname()[1]
        free.close()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        found = await port(Settings(bind=f"127.0.0.1:{free_port}", cluster_bind=address))
    assert (found.outcome, found.said) == (
        *(Outcome.FAIL, f"{address} is in use by another program"),
    )


@pytest.mark.parametrize(
    ("content", "outcome"),
    [
        (f"{UNIX_SEND_BUFFER_BYTES}\n", Outcome.OK),
        ("212992\n", Outcome.WARN),
        ("?", Outcome.OK),
        (None, Outcome.OK),
    ],
)
def test_buffers_between_workers_should_have_room(
    content: str | None, outcome: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "wmem_max"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(cluster, "WMEM_MAX", file)
    found = look_at_buffers()
    assert found.outcome is outcome
    if outcome is Outcome.WARN:
        assert f"net.core.wmem_max={UNIX_SEND_BUFFER_BYTES}" in found.do


def test_sockets_are_checked_where_there_are_workers() -> None:
    assert [each.name for each in ClusterChecks(Settings(workers=2)).checks()] == ["sockets"]
