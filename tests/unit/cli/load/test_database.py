"""What a load test says at once where PostgreSQL is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.cli.load.database import check_database
from relay.errors import ConfigError
from relay.load.scenario.parsing import parse_scenario
from relay.postgres.embedded import binaries

GROUP = "[phones.p]\n"


@pytest.fixture
def without_postgres(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "_wheel", lambda: None)
    monkeypatch.setattr(binaries, "_installed", lambda: iter(()))


def check(source: str) -> None:
    check_database(parse_scenario(source, "mine.toml", Path()))


def test_a_relay_without_a_postgres_is_refused_with_the_extra_to_install(
    without_postgres: None,
) -> None:
    with pytest.raises(ConfigError) as raised:
        check(GROUP)
    assert "install relay with its extra `load`, or PostgreSQL itself" in str(raised.value)
    assert "with --target URL" in str(raised.value)


@pytest.mark.parametrize(
    "target",
    [
        'url = "ws://localhost:3000"',
        'start = true\nsettings = ["--database-url", "postgresql://x/y"]',
        'start = true\nsettings = ["--postgres-bin=/opt/pg/bin"]',
    ],
)
def test_a_relay_that_needs_none_is_not(target: str, without_postgres: None) -> None:
    check(f"{GROUP}[target]\n{target}\n")


def test_a_postgres_that_the_environment_names_will_do(
    without_postgres: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELAY_DATABASE_URL", "postgresql://x/y")
    check(GROUP)
