"""`relay load` when something is not as it should be: TLS, tokens that end, targets that stall, and
its own violent end."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
import trustme

from tests.integration.accounts import Accounts
from tests.integration.load_command import (
    PATIENCE,
    SHORT,
    UNCHECKED,
    against,
    assert_nothing_is_left,
    finish,
    start,
    until_line,
    write,
)
from tests.integration.relay_process import RelayProcess, processes_about, start_relay


@pytest.fixture(scope="module")
def relay(database_url: str) -> Iterator[RelayProcess]:
    with start_relay("--profile", "load", database_url=database_url) as relay:
        yield relay


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def secure(
    database_url: str, authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RelayProcess]:
    """A relay with a certificate for 127.0.0.1."""
    place = tmp_path_factory.mktemp("certificate")
    leaf = authority.issue_cert("127.0.0.1")
    certificate, key = place / "certificate.pem", place / "key.pem"
    certificate.write_bytes(b"".join(part.bytes() for part in leaf.cert_chain_pems))
    leaf.private_key_pem.write_to_path(str(key))
    flags = ("--tls-certificate", str(certificate), "--tls-key", str(key), "--profile", "load")
    with start_relay(*flags, database_url=database_url) as relay:
        yield relay


@pytest.mark.slow
def test_a_target_with_tls_is_loaded_over_any_network_and_its_ledger_agrees(
    secure: RelayProcess,
    authority: trustme.CA,
    accounts: Accounts,
    tmp_path: Path,
    folder: Path,
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    slow = '[viewers.slow]\nwatch = "doors"\nnetwork = { bandwidth = "1Mbit/s", delay = "10ms" }\n'
    source = f'{SHORT}{slow}[tls]\nca = "ca.pem"\n'
    code, output, errors = finish(start(folder, against(secure, accounts, tmp_path, source)))
    assert (code, errors) == (0, ""), output
    assert "ok   the relay's ledger agrees" in output
    assert re.search(r"slow +\d+", output)


@pytest.mark.slow
def test_a_certificate_of_nobody_known_is_not_trusted_unless_the_scenario_says_so(
    secure: RelayProcess,
    accounts: Accounts,
    tmp_path: Path,
    folder: Path,
) -> None:
    scenario = against(secure, accounts, tmp_path, UNCHECKED)
    Path(scenario).write_text(Path(scenario).read_text().replace("ledger = true", ""))
    code, output, _ = finish(start(folder, scenario))
    assert code == 1
    assert "its certificate is not to be trusted" in output
    Path(scenario).write_text(Path(scenario).read_text() + "[tls]\ninsecure = true\n")
    code, output, errors = finish(start(folder, scenario))
    assert (code, errors) == (0, ""), output


@pytest.mark.slow
def test_a_recording_trusts_whom_it_is_told_and_ends_in_good_order_at_ctrl_c(
    secure: RelayProcess,
    authority: trustme.CA,
    accounts: Accounts,
    tmp_path: Path,
    folder: Path,
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    (tmp_path / "token").write_text(accounts.session("ann"))
    trace = tmp_path / "door.trace"
    url = secure.url.replace("http", "ws", 1)
    tokens = ("--token-file", str(tmp_path / "token"))
    record = ("record", url, "a-door", "-o", str(trace), *tokens)
    code, _, errors = finish(start(folder, *record))
    assert code == 2
    assert "its certificate is not to be trusted" in errors
    trace.unlink()
    process = start(folder, *record, "--ca", str(tmp_path / "ca.pem"))
    while not trace.exists():
        assert process.poll() is None
        threading.Event().wait(0.05)
    process.send_signal(signal.SIGINT)
    assert finish(process) == (0, f"0 frames in {trace}, 0 missed\n", "")
    seconds = ("--ca", str(tmp_path / "ca.pem"), "--seconds", "2")
    assert finish(start(folder, *record, *seconds)) == (
        0, f"0 frames in {trace}, 0 missed\n", "",
    )  # fmt: skip


@pytest.mark.slow
def test_a_token_that_expires_in_the_middle_fails_the_run_and_says_so(
    relay: RelayProcess,
    accounts: Accounts,
    tmp_path: Path,
    folder: Path,
) -> None:
    scenario = against(relay, accounts, tmp_path, UNCHECKED.replace('"1s"', '"13s"', 1))
    tokens = tmp_path / "tokens"
    tokens.unlink()
    os.mkfifo(tokens)
    process = start(folder, scenario)
    with tokens.open("w") as file:  # once it is read: a busy machine takes long to start
        file.write(accounts.session("ann", lasts=timedelta(seconds=10)) + "\n")
    code, output, errors = finish(process)
    assert (code, errors) == (1, ""), output
    assert "FAIL no session expires during the run" in output
    assert re.search(r"6 connections were closed because their session had\s+expired", output)
    assert re.search(r"doors +\d+", output)
    assert "closed with 4001 (session expired)" in output


@pytest.mark.slow
def test_a_target_that_accepts_and_says_nothing_is_a_failed_run_with_its_reason(
    tmp_path: Path,
    folder: Path,
) -> None:
    (tmp_path / "tokens").write_text("token\n")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(100)
        where = f"ws://127.0.0.1:{silent.getsockname()[1]}"
        target = f'[target]\nurl = "{where}"\n[tokens]\nfile = "tokens"\n'
        longer = UNCHECKED.replace('"1s"', '"2s"', 1)
        code, output, errors = finish(start(folder, write(tmp_path, longer + target)))
    assert (code, errors) == (1, ""), output
    assert "no answer until the end" in output
    assert "FAIL clients are admitted   (none of 0 connections was authenticated)" in output


@pytest.mark.slow
def test_a_target_that_stalls_in_the_middle_leaves_the_results_so_far_and_fails_the_run(
    database_url: str,
    accounts: Accounts,
    tmp_path: Path,
    folder: Path,
) -> None:
    with start_relay("--profile", "load", database_url=database_url) as relay:
        process = start(
            folder, against(relay, accounts, tmp_path, UNCHECKED.replace('"1s"', '"4s"', 1))
        )
        seen = until_line(process, "  1 s")
        relay.signal(signal.SIGSTOP)
        try:
            code, output, errors = finish(process)
        finally:
            relay.signal(signal.SIGCONT)
    assert (code, errors) == (1, ""), seen + output
    assert "FAIL the relay's ledger agrees   (cannot read the relay's /stats: no answer" in output
    assert re.search(r"fast: no frame came for up to [23]\.?\d* s", output)
    assert re.search(r"fast +\d+", output)


@pytest.mark.slow
def test_a_relay_that_was_started_does_not_outlive_a_load_test_that_is_killed(
    tmp_path: Path,
    folder: Path,
) -> None:
    process = start(folder, write(tmp_path, SHORT.replace('"1s"', '"60s"', 1)))
    assert process.stdout is not None
    assert process.stderr is not None
    with closing(process.stdout), closing(process.stderr):
        until_line(process, "  1 s")
        assert processes_about(str(folder)) != []
        process.kill()
        process.wait()
        end = time.monotonic() + PATIENCE
        while (processes_about(str(folder)) or any(folder.iterdir())) and time.monotonic() < end:
            threading.Event().wait(0.1)
    assert_nothing_is_left(folder)
