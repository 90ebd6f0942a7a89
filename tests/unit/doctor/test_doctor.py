"""Checks side by side, and those of the machine."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trustme

from relay.doctor import checks
from relay.doctor.checks import (
    CHECK_TIMEOUT,
    DoctorCheck,
    Examined,
    Finding,
    Outcome,
    fail,
    ok,
    warn,
)
from relay.doctor.checks import examine as look_at
from relay.doctor.machine import MachineChecks
from relay.doctor.report import Report, diagnose
from relay.errors import ConfigError, StoreUnavailable
from relay.settings.loading import examine
from relay.settings.settings import Settings

Look = Callable[[], Awaitable[Finding]]


def finds(finding: Finding, after: float = 0) -> Look:
    async def look() -> Finding:
        await trio.sleep(after)
        return finding

    return look


def raises(error: Exception) -> Look:
    async def look() -> Finding:
        raise error

    return look


async def outcome_of(*several: DoctorCheck, wrong: tuple[str, ...] = ()) -> list[Examined]:
    told: list[Examined] = []
    await look_at(several, wrong, told.append)
    return told


@pytest.mark.mock_clock
async def test_a_check_that_hangs_holds_up_no_other() -> None:
    told: list[tuple[float, str, Outcome]] = []
    start = trio.current_time()

    def tell(examined: Examined) -> None:
        told.append((trio.current_time() - start, examined.name, examined.finding.outcome))

    several = [
        DoctorCheck("quick", finds(ok("")), ()),
        DoctorCheck("slow", finds(warn("", ""), after=1), ()),
        DoctorCheck("hangs", finds(ok(""), after=1e9), (), "see why"),
        DoctorCheck("beside it", finds(fail("", ""), after=2), ()),
    ]
    await look_at(several, (), tell)
    assert told == [
        (0, "quick", Outcome.OK),
        (1, "slow", Outcome.WARN),
        (CHECK_TIMEOUT, "hangs", Outcome.FAIL),
        (CHECK_TIMEOUT, "beside it", Outcome.FAIL),
    ]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (StoreUnavailable("gone"), "the database is unavailable: gone"),
        (ConfigError("no key"), "no key"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
    ],
)
async def test_an_error_that_can_be_explained_is_a_finding(error: Exception, said: str) -> None:
    (only,) = await outcome_of(DoctorCheck("x", raises(error), (), "do this"))
    assert only.finding == Finding(Outcome.FAIL, said, "do this")


async def test_a_bug_in_a_check_is_loud() -> None:
    with pytest.RaisesGroup(KeyError):
        await outcome_of(DoctorCheck("x", raises(KeyError("bug")), ()))


async def test_what_a_wrong_setting_is_needed_for_is_not_looked_at() -> None:
    first, second = await outcome_of(
        DoctorCheck("port", finds(ok("fine")), ("bind", "proxy_protocol")),
        DoctorCheck("disk", finds(ok("fine")), ("data_dir",)),
        wrong=("bind",),
    )
    assert first.finding == Finding(Outcome.SKIP, "not checked: bind is invalid")
    assert second.finding.outcome is Outcome.OK


def test_a_settings_file_that_cannot_be_read_leaves_nothing_to_look_at(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    configuration, problems = examine(config_file=str(tmp_path / "x.toml"), environment={})
    assert not diagnose(configuration, problems, as_json=False)
    first, do, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("fail  settings     cannot read the settings file")
    assert do.strip().startswith("-> ")
    assert others
    assert all(line.startswith("skip ") for line in others)


def test_what_is_said_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(as_json=False)
    report.tell(Examined("x", fail("\x1b[2J", "a\nb")))
    report.finish()
    out = capsys.readouterr().out
    assert out.splitlines() == ["fail  x            \\x1b[2J", f"{'':18} -> a\\nb"]
    assert not report.healthy


async def machine(name: str, settings: Settings) -> Finding:
    (check,) = (each for each in MachineChecks(settings).checks() if each.name == name)
    (examined,) = await outcome_of(check)
    return examined.finding


NOW = datetime.now(UTC)


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def issue(authority: trustme.CA, tmp_path: Path) -> Callable[..., Settings]:
    def issue(until: timedelta, since: timedelta = timedelta(days=-1)) -> Settings:
        made = authority.issue_cert("relay.test", not_before=NOW + since, not_after=NOW + until)
        chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
        chain.write_bytes(b"".join(each.bytes() for each in made.cert_chain_pems))
        key.write_bytes(made.private_key_pem.bytes())
        return Settings(tls_certificate=chain, tls_key=key)

    return issue


@pytest.mark.parametrize(
    ("until", "since", "outcome", "said"),
    [
        (60, -1, Outcome.OK, "is valid until "),
        (13, -1, Outcome.WARN, "for 1"),
        (-1, -2, Outcome.FAIL, "the certificate expired on "),
        (60, 1, Outcome.FAIL, "the certificate is not valid before "),
    ],
)
async def test_a_certificate_is_good_for_a_time(
    issue: Callable[..., Settings], until: int, since: int, outcome: Outcome, said: str
) -> None:
    found = await machine("tls", issue(timedelta(days=until), timedelta(days=since)))
    assert found.outcome is outcome
    assert said in found.said
    assert found.do or outcome is Outcome.OK


async def test_a_certificate_that_does_not_fit_its_key_is_found(
    issue: Callable[..., Settings], authority: trustme.CA
) -> None:
    settings = issue(timedelta(days=60))
    assert settings.tls_key is not None
    settings.tls_key.write_bytes(authority.issue_cert("x.test").private_key_pem.bytes())
    found = await machine("tls", settings)
    assert found.outcome is Outcome.FAIL
    assert "are no certificate and its key" in found.said
    assert "PRIVATE" not in found.said
    settings.tls_key.unlink()
    assert f"{settings.tls_key} cannot be read" in (await machine("tls", settings)).said


@pytest.mark.parametrize(
    ("settings", "outcome"),
    [
        (Settings(), Outcome.OK),
        (Settings(bind="[::1]:3000"), Outcome.OK),
        (Settings(bind="0.0.0.0:3000", dev_tls=True), Outcome.OK),
        (Settings(bind="0.0.0.0:3000", trusted_proxies=("10.0.0.1",)), Outcome.OK),
        (Settings(bind="0.0.0.0:3000"), Outcome.WARN),
        (Settings(bind="relay.example.org:3000"), Outcome.WARN),
    ],
)
async def test_tokens_in_the_clear_are_worth_a_word(settings: Settings, outcome: Outcome) -> None:
    assert (await machine("tls", settings)).outcome is outcome


@pytest.mark.parametrize(
    ("hard", "outcome"),
    [
        (resource.RLIM_INFINITY, Outcome.OK),
        (13_200, Outcome.OK),
        (13_199, Outcome.WARN),
        (1024, Outcome.WARN),
    ],
)
async def test_files_have_to_do_for_all_connections(
    hard: int, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, hard))
    found = await machine("files", Settings())
    assert found.outcome is outcome
    if outcome is Outcome.WARN:
        assert "13200" in found.do


@pytest.mark.parametrize(
    ("free", "outcome"),
    [(2 << 30, Outcome.OK), (500 << 20, Outcome.WARN), (1 << 20, Outcome.FAIL)],
)
async def test_there_has_to_be_room_for_alerts(
    free: int, outcome: Outcome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def usage(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(free=free)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    folder = tmp_path / "not" / "there" / "yet"
    assert (await machine("disk", Settings(data_dir=folder))).outcome is outcome
    assert asked == [tmp_path]
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize(
    ("given", "read_only"),
    [
        ({}, "data"),
        ({"dev_tls": True}, "data/dev-tls"),
        ({"dev_tls": True, "database_url": "postgresql://db/x"}, "data/dev-tls"),
    ],
)
async def test_every_folder_that_relay_writes_to_is_looked_at(
    given: dict[str, Any], read_only: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forbidden = tmp_path / read_only
    forbidden.mkdir(parents=True)
    real = os.access

    def access(path: Path, wanted: int) -> bool:
        return real(path, wanted) and not (path == forbidden and wanted & os.W_OK)

    monkeypatch.setattr(os, "access", access)
    found = await machine("disk", Settings(data_dir=tmp_path / "data", **given))
    assert found.outcome is Outcome.FAIL
    assert f"may not write to {forbidden}" in found.said


async def test_a_folder_behind_a_locked_one_is_told_as_that(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def access(path: Path, wanted: int) -> bool:
        return path == tmp_path and wanted == os.F_OK

    monkeypatch.setattr(os, "access", access)
    found = await machine("disk", Settings(data_dir=tmp_path / "locked" / "data"))
    assert f"may not write to {tmp_path}" in found.said


async def test_a_key_for_jwts_is_tried(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    found = await machine("jwt-key", Settings(jwt_public_key=path))
    assert "cannot read jwt_public_key" in found.said
    path.write_text("no key")
    assert (
        "expected a public key in PEM"
        in (await machine("jwt-key", Settings(jwt_public_key=path))).said
    )


async def test_a_file_that_hangs_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "CHECK_TIMEOUT", 0.2)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # which nobody writes to
    found = await machine("jwt-key", Settings(jwt_public_key=pipe))
    assert found.said == "no answer within 0.2 s"
    pipe.open("wb").close()  # lets the thread go home
