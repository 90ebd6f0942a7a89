"""`relay ingest` as users run it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.accounts import Accounts
from tests.integration.in_process import call_relay
from tests.integration.ingest.cameras import make_film
from tests.integration.peers import login, new_stream_id
from tests.integration.relay_process import (
    PATIENCE,
    PROJECT,
    RELAY,
    RelayProcess,
    processes_about,
    until,
)

SECRET = "s3cret"


@contextmanager
def running(
    arguments: Sequence[str], stderr: Path, **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    with stderr.open("wb") as sink:
        process = subprocess.Popen(
            [*RELAY, "ingest", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=sink,
            cwd=PROJECT,
            env={**os.environ, **variables},
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def stream_id() -> str:
    return new_stream_id()


@pytest.fixture
def token(accounts: Accounts, stream_id: str) -> str:
    accounts.session("ann")
    return accounts.service(alerts=False, produce=[stream_id], user_id="ann")


async def test_a_film_is_played_until_ctrl_c(
    relay: RelayProcess, accounts: Accounts, stream_id: str, token: str, tmp_path: Path
) -> None:
    film, stderr = make_film(tmp_path / "film.mp4"), tmp_path / "stderr"
    given = (f"file:{film}", "--loop", "--stream", stream_id, "--url", relay.url)
    with running(given, stderr, RELAY_TOKEN=token) as process:
        await until(lambda: f"relay: publishing {stream_id}" in stderr.read_text())
        async with login(relay, accounts.session("ann")) as viewer:
            await viewer.subscribe(stream_id)
            await viewer.receive_type("video-frame")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    assert "Traceback" not in stderr.read_text()


async def test_a_password_is_shown_nowhere(
    relay: RelayProcess, accounts: Accounts, stream_id: str, token: str, tmp_path: Path
) -> None:
    stderr, source, key = tmp_path / "stderr", tmp_path / "source", tmp_path / "token"
    source.write_text(f"rtsp://user:{SECRET}@127.0.0.1:1/main\n")
    key.write_text(token)
    given = ("--source-file", str(source), "--token-file", str(key), "--stream", stream_id)
    with running((*given, "--url", relay.url), stderr) as process:
        async with login(relay, accounts.session("ann")) as viewer:
            await viewer.subscribe(stream_id)
            await until(lambda: "Connection refused; again in" in stderr.read_text())
        assert not processes_about(SECRET)
        process.terminate()
    assert "relay: cannot read rtsp://127.0.0.1:1/main" in stderr.read_text()
    assert SECRET not in stderr.read_text()


async def test_a_stream_of_another_user_is_refused_in_one_line(
    relay: RelayProcess, accounts: Accounts, stream_id: str, token: str, tmp_path: Path
) -> None:
    film, stderr = make_film(tmp_path / "film.mp4", pictures=3), tmp_path / "stderr"
    accounts.execute("insert into relay.streams values (%s, 'bob')", stream_id)
    given = (f"file:{film}", "--stream", stream_id, "--url", relay.url)
    with running(given, stderr, RELAY_TOKEN=token) as process:
        assert process.wait(PATIENCE) == 2
    assert stderr.read_text().splitlines()[-1] == "relay: UNAUTHORIZED: This stream id is taken"
    assert "Traceback" not in stderr.read_text()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "give a source"),
        (("film.mp4",), "should begin with rtsp://"),
        (("file:/nowhere.mp4",), "there is no file"),
        (("rtsp://cam/x", "--codec", "h264", "--quality", "50"), "--quality is for --codec jpeg"),
        (("rtsp://cam/x", "--loop"), "--loop is for files only"),
        (("rtsp://cam/x", "--layers", "5"), "expected up to 3 widths"),
        (("rtsp://cam/x", "--layers", "640", "--max-width", "640"), "smaller than --max-width"),
        (("rtsp://cam/x", "--source-file", "x"), "not both"),
        (("rtsp://cam/x",), "RELAY_TOKEN or --token-file"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    given: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RELAY_TOKEN", raising=False)
    code, out, err = call_relay("ingest", "--stream", "cam", *given, database_url="")
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_a_password_in_an_argument_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RELAY_TOKEN", raising=False)
    _code, _out, err = call_relay(
        "ingest", "--stream", "cam", f"rtsp://u:{SECRET}@cam/x", database_url=""
    )
    assert "warning: other users of this machine can see" in err
    assert SECRET not in err


async def test_a_device_that_is_not_there_is_waited_for(
    relay: RelayProcess, accounts: Accounts, stream_id: str, token: str, tmp_path: Path
) -> None:
    stderr = tmp_path / "stderr"
    given = ("/dev/relay-no-video", "--device", "--stream", stream_id, "--url", relay.url)
    with running(given, stderr, RELAY_TOKEN=token):
        async with login(relay, accounts.session("ann")) as viewer:
            await viewer.subscribe(stream_id)
            await until(lambda: "No such file or directory; again in" in stderr.read_text())
