"""What becomes of a process that reads a source, and of those that do not do as they should."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import trio

from relay.ingest import reader_process
from relay.ingest.ingest import IngestOptions
from relay.ingest.reader_process import READER_COMMAND, SourceFailed, open_reader
from relay.ingest.source import parse_source
from tests.integration.ingest.cameras import make_film
from tests.integration.relay_process import PATIENCE, PROJECT, processes_about


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return make_film(tmp_path / "film.mp4", pictures=20)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import os; os.abort()", "made the reader crash"),
        ("print('x' * 100)", "makes no sense"),
        ("import sys; sys.stdout.buffer.write(bytes([1, 0, 0, 0, 0, 0]))", "makes no sense"),
        ("import sys; sys.stdout.buffer.write(bytes([0, 0, 1, 0, 0, 0]) + b'x')", "no sense"),
        ("import time; time.sleep(60)", "it sends nothing"),
    ],
)
async def test_a_process_that_fails_is_a_source_that_fails(
    program: str, said: str, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_process, "SILENCE_TIMEOUT", 2.0)
    request = IngestOptions(parse_source(f"file:{film}"), "cam").request
    async with open_reader([sys.executable, "-c", program]) as reader:
        with pytest.raises(SourceFailed, match=said):
            await reader.open(request)


async def test_a_process_ends_with_the_block_even_when_nobody_reads_what_it_writes(
    film: Path,
) -> None:
    options = IngestOptions(parse_source(f"file:{film}"), "cam", "copy", loop=True)
    marker = f"reader-of-{os.getpid()}"
    async with open_reader([*READER_COMMAND, marker]) as reader:
        await reader.open(options.request)
        assert processes_about(marker)
    assert not processes_about(marker)


def test_a_process_ends_when_its_parent_does(film: Path) -> None:
    request = IngestOptions(parse_source(f"file:{film}"), "cam", "copy", loop=True).request
    with subprocess.Popen(
        READER_COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PROJECT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(request) + b"\n")
        process.stdin.flush()
        assert process.stdout.read(6)
        process.send_signal(signal.SIGINT)  # of the terminal: its parent is to end it
        process.stdin.close()
        assert process.wait(PATIENCE) == 0


async def test_a_process_gets_no_secrets(monkeypatch: pytest.MonkeyPatch, film: Path) -> None:
    for name in ("RELAY_TOKEN", "RELAY_SOURCE", "RELAY_DATABASE_URL"):
        monkeypatch.setenv(name, "s3cret")
    monkeypatch.setenv("RELAY_LOG_LEVEL", "debug")
    program = (
        "import os, sys; sys.stdin.readline();"
        "told = repr([each for each in os.environ.items() if each[0].startswith('RELAY_')]);"
        "sys.stdout.buffer.write(bytes([4, 0]) + len(told).to_bytes(4, 'little') + told.encode())"
    )
    request = IngestOptions(parse_source(f"file:{film}"), "cam").request
    async with open_reader([sys.executable, "-c", program]) as reader:
        with pytest.raises(SourceFailed) as told, trio.fail_after(PATIENCE):
            await reader.open(request)
    assert str(told.value) == "[('RELAY_LOG_LEVEL', 'debug')]"
