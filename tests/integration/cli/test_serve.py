"""Starting and stopping: the ready line, signals, and what goes wrong before there is a relay."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio

from relay.process.first_process import EXIT_TERMINATED
from tests.integration.accounts import Accounts
from tests.integration.peers import login, new_stream_id, open_peer
from tests.integration.raw import open_raw
from tests.integration.relay_process import (
    PATIENCE,
    PROJECT,
    RELAY,
    SERVE,
    RelayProcess,
    environment,
    processes_about,
    run_relay,
    start_relay,
    until,
)
from tests.integration.terminal import on_terminal


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A place for a Postgres that runs as another user when the tests run as root."""
    with TemporaryDirectory(prefix="relay-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "data"


# -- start


async def test_the_address_on_stdout_answers(relay: RelayProcess) -> None:
    assert (await relay.get("/health")).json() == {"status": "ok"}
    assert (await relay.get("/ready")).status == 200


def local_hosts() -> list[str]:
    """127.0.0.1, and ::1 where this machine has it."""
    with socket.socket(socket.AF_INET6) as attempt:
        try:
            attempt.bind(("::1", 0))
        except OSError:
            return ["127.0.0.1"]
    return ["127.0.0.1", "::1"]


async def test_localhost_is_both_protocols_on_one_port(database_url: str) -> None:
    with start_relay(command=SERVE, bind="localhost:0", database_url=database_url) as relay:
        for host in local_hosts():
            async with await trio.open_tcp_stream(host, relay.port):
                pass
        await relay.until_logged(f"to let phones in, use --bind 0.0.0.0:{relay.port}")


# -- stop


async def test_sigterm_tells_all_clients_and_ends_with_0(
    database_url: str, accounts: Accounts
) -> None:
    token, stream_id = accounts.session(), new_stream_id()
    with start_relay(command=SERVE, database_url=database_url) as relay:
        async with (
            login(relay, token) as phone,
            login(relay, token) as viewer,
            open_peer(relay) as stranger,
            open_raw(relay) as silent,
        ):
            await phone.register(stream_id)
            await viewer.subscribe(stream_id)
            relay.signal(signal.SIGTERM)
            for peer in (phone, viewer, stranger):
                heard, close = await peer.hear_end()
                (notice,) = [message for message in heard if message["type"] == "notice"]
                assert notice["code"] == "SERVER_RESTARTING"
                assert notice["retryAfter"] >= 0
                assert close == (4012, "server restarting")
            assert await silent.read_to_end() == b""
            assert await relay.ended() == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", relay.port))


async def test_sigint_does_too_and_ends_the_embedded_postgres(data_dir: Path) -> None:
    with start_relay("--data-dir", str(data_dir), command=SERVE) as relay:
        assert processes_about(str(data_dir))
        async with open_peer(relay) as peer:
            relay.signal(signal.SIGINT)
            assert (await peer.hear_end())[1] == (4012, "server restarting")
            assert await relay.ended() == 0
        assert processes_about(str(data_dir)) == []


@pytest.mark.slow
async def test_a_second_signal_ends_a_drain_that_a_client_holds_up(data_dir: Path) -> None:
    with start_relay("--data-dir", str(data_dir), "--drain-timeout", "60", command=SERVE) as relay:
        async with open_raw(relay, upgrade=True):
            relay.signal(signal.SIGTERM)
            await relay.until_logged("draining")
            relay.signal(signal.SIGTERM)
            assert await relay.ended() == 2
        assert relay.log.splitlines()[-1].startswith("relay: stopped at once")
        await until(lambda: not processes_about(str(data_dir)))


@pytest.mark.slow
async def test_clients_that_never_answer_do_not_hold_up_the_end(database_url: str) -> None:
    with start_relay("--drain-timeout", "0.5", command=SERVE, database_url=database_url) as relay:
        async with AsyncExitStack() as stack:
            for _ in range(5):
                await stack.enter_async_context(open_raw(relay, upgrade=True))
            half_asked = await stack.enter_async_context(open_raw(relay))
            await half_asked.send(b"POST /health HTTP/1.1\r\nHost: relay\r\nContent-Length: 9\r\n")
            relay.signal(signal.SIGTERM)
            assert await relay.ended() == 0


def as_first_process() -> list[str]:
    """The command before one that is then the first process of a namespace, as in a container."""
    rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = ["unshare", *rights, "--pid", "--fork", "--kill-child"]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("platform: no namespace of processes can be made here")
    return command


def test_the_first_process_of_a_container_ends_on_sigterm_while_it_starts() -> None:
    command = [*as_first_process(), *SERVE, "--bind", "127.0.0.1:0", "--connect-timeout", "60"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(PATIENCE)
        url = f"postgresql://relay@127.0.0.1:{silent.getsockname()[1]}/relay"
        outer = subprocess.Popen(command, cwd=PROJECT, env=environment(url))
        try:
            connection, _ = silent.accept()  # it asks a database that does not answer
            with connection:
                children = ["ps", "-o", "pid=", "--ppid", str(outer.pid)]
                shown = subprocess.run(children, check=True, capture_output=True)
                os.kill(int(shown.stdout), signal.SIGTERM)
                assert outer.wait(PATIENCE / 2) == EXIT_TERMINATED
        finally:
            outer.kill()
            outer.wait()


# -- what goes wrong


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a command failed with."""
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("relay: ")
    return line


def test_a_port_in_use_is_named(relay: RelayProcess, database_url: str) -> None:
    bind = f"127.0.0.1:{relay.port}"
    done = run_relay("serve", "--bind", bind, database_url=database_url)
    assert f"{bind} is in use" in complaint(done)


@pytest.mark.slow
def test_a_second_relay_on_one_data_folder_is_refused(data_dir: Path) -> None:
    with start_relay("--data-dir", str(data_dir), command=SERVE) as relay:
        place = ("--data-dir", str(data_dir))
        line = complaint(run_relay("serve", "--bind", "127.0.0.1:0", *place))
        assert f"another relay runs its PostgreSQL in {data_dir}" in line
        assert run_relay("token", "list", *place).returncode == 0
        assert relay.running


def test_an_unknown_setting_is_named(tmp_path: Path) -> None:
    file = tmp_path / "relay.toml"
    file.write_text("drain_timeuot = 3\n")
    assert "drain_timeuot" in complaint(run_relay("serve", "--config", str(file), command=RELAY))


def test_a_database_that_is_not_there_is_one_line() -> None:
    nowhere = "postgresql://relay:hunter2@127.0.0.1:9/relay"
    done = run_relay("serve", "--bind", "127.0.0.1:0", database_url=nowhere)
    assert "hunter2" not in complaint(done)


def test_a_wrong_password_is_not_repeated(database_url: str) -> None:
    wrong = re.sub(r"//relay:[\w-]+@", "//relay:hunter2@", database_url)
    assert wrong != database_url
    done = run_relay("serve", "--bind", "127.0.0.1:0", database_url=wrong)
    line = complaint(done)
    assert "password" in line
    assert "hunter2" not in line


def test_a_database_without_tables_gets_told_what_to_do(empty_postgres_url: str) -> None:
    def serve() -> subprocess.CompletedProcess[str]:
        return run_relay("serve", "--bind", "127.0.0.1:0", database_url=empty_postgres_url)

    assert "`relay db migrate`" in complaint(serve())
    assert run_relay("db", "migrate", database_url=empty_postgres_url).returncode == 0
    line = complaint(serve())
    assert "Better Auth" in line
    assert "session" in line


async def test_a_hangup_without_a_certificate_changes_nothing(
    relay: RelayProcess, accounts: Accounts
) -> None:
    async with login(relay, accounts.session()) as peer:
        for _ in range(2):
            relay.signal(signal.SIGHUP)
        await relay.until_logged("there is no certificate")
        assert (await peer.ask({"type": "register"}))["code"] == "REGISTERED"
    assert (await relay.get("/ready")).status == 200


async def test_a_request_to_start_workers_anew_ends_no_relay_without_workers(
    relay: RelayProcess, accounts: Accounts
) -> None:
    async with login(relay, accounts.session()) as peer:
        relay.signal(signal.SIGUSR2)
        await relay.until_logged("there are no workers")
        assert (await peer.ask({"type": "register"}))["code"] == "REGISTERED"


async def test_a_relay_ends_with_its_terminal_and_says_goodbye(
    database_url: str, accounts: Accounts
) -> None:
    command = [*SERVE, "--bind", "127.0.0.1:0"]
    with on_terminal(command, environment={"RELAY_DATABASE_URL": database_url}) as terminal:
        await terminal.until("relay listening on http")
        url = re.findall(r"relay listening on (http\S+)", terminal.text())[0]
        relay = RelayProcess(url, terminal.process, Path(os.devnull))
        async with login(relay, accounts.session()) as peer:
            terminal.close()
            heard, (code, _) = await peer.hear_end()
            assert heard[-1]["code"] == "SERVER_RESTARTING"
            assert code == 4012
        assert await relay.ended() == 0


async def test_a_service_manager_hears_when_relay_listens(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TemporaryDirectory(prefix="relay-test-") as folder:
        path = f"{folder}/notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(path)
            manager.setblocking(False)
            monkeypatch.setenv("NOTIFY_SOCKET", path)
            with start_relay(command=SERVE, database_url=database_url) as relay:
                with trio.fail_after(PATIENCE):
                    await trio.lowlevel.wait_readable(manager)
                assert manager.recv(100) == b"READY=1"
                assert (await relay.get("/health")).status == 200


def test_dev_tls_without_a_place_for_its_certificate_is_a_line(folder: Path) -> None:
    (folder / "file").touch()
    done = run_relay("serve", "--dev-tls", "--bind", "localhost:0", "--data-dir", f"{folder}/file")
    assert done.returncode == 2
    assert "set data_dir to a folder" in done.stderr
    assert done.stderr.count("\n") == 1
