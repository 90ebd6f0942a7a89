"""The demo as a process of its own: a real video, real sockets, a real Postgres."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import relay
from relay.model.access.identity import SERVICE_TOKEN_PREFIX

REPOSITORY = Path(relay.__file__).parents[1]
PATIENCE = 60
"""Seconds after which a demo that does not end fails its test."""
FRAMES, MISSED, FPS, P50, P99, MEGABITS, ALERTS = range(7)


@pytest.fixture
def folder() -> Iterator[Path]:
    """For temporary files, where also the user nobody may pass, as whom root's Postgres runs."""
    path = Path(tempfile.mkdtemp(prefix="relay-test-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


def start_demo(folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "relay", "demo", *options],
        cwd=REPOSITORY,
        env=os.environ | {"TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(demo: subprocess.Popen[str]) -> tuple[str, str]:
    try:
        return demo.communicate(timeout=PATIENCE)
    finally:
        demo.kill()


def row(output: str, name: str) -> list[float]:
    """The filled cells of a participant in the summary."""
    (line,) = re.findall(rf"^ *{name} +([\d. ]+)$", output, re.MULTILINE)
    return [float(cell) for cell in line.split()]


def assert_nothing_is_left(folder: Path) -> None:
    assert list(folder.iterdir()) == []
    processes = subprocess.run(
        ["ps", "-axww", "-o", "args="], capture_output=True, text=True, check=True
    )
    assert str(folder) not in processes.stdout


def test_the_demo_shows_video_at_each_pace_and_alerts_and_leaves_nothing(folder: Path) -> None:
    demo = start_demo(folder, "--seconds", "5", "--bind", "127.0.0.1:0")
    output, errors = finish(demo)
    assert (demo.returncode, errors) == (0, "")
    assert re.search(r"web page: http://127\.0\.0\.1:\d+/ +video: bigbuckbunny\.mp4 +5 s", output)

    fast = row(output, "fast viewer")
    assert fast[FRAMES] > 15  # of 125: this machine may be busy
    assert fast[MISSED] < fast[FRAMES] / 4
    slow = row(output, "1 Mbit/s viewer")
    assert slow[FRAMES] >= 3
    # With smaller pictures it gets about half of them.
    assert slow[MISSED] > max(fast[MISSED], slow[FRAMES] / 3)
    assert slow[MEGABITS] < 1.05
    (raised,) = row(output, "alert service")
    assert raised - 1 <= fast[ALERTS] <= raised
    assert raised - 1 <= slow[ALERTS] <= raised
    assert slow[ALERTS] >= 1
    assert SERVICE_TOKEN_PREFIX not in output
    assert_nothing_is_left(folder)


@pytest.mark.slow
def test_ctrl_c_ends_the_demo_with_its_summary_and_leaves_nothing(folder: Path) -> None:
    demo = start_demo(folder, "--bind", "127.0.0.1:0")
    assert demo.stdout
    seen = ""
    while not re.search(r"^ *\d+ s  phone: ", seen, re.MULTILINE):
        line = demo.stdout.readline()
        assert line, "the demo ended by itself"
        seen += line
    demo.send_signal(signal.SIGINT)
    output, errors = finish(demo)
    assert (demo.returncode, errors) == (0, "")
    assert row(output, "fast viewer")[FRAMES] > 0
    assert_nothing_is_left(folder)


@pytest.mark.slow
def test_a_signal_during_the_start_ends_the_demo_and_leaves_nothing(folder: Path) -> None:
    demo = start_demo(folder, "--bind", "127.0.0.1:0")
    assert demo.stdout
    assert demo.stdout.readline().startswith("Starting a relay")
    demo.send_signal(signal.SIGTERM)
    output, errors = finish(demo)
    assert (demo.returncode, output, errors) == (0, "", "")
    assert_nothing_is_left(folder)


@pytest.mark.slow
def test_when_nobody_reads_the_output_the_demo_ends_and_leaves_nothing(folder: Path) -> None:
    demo = start_demo(folder, "--bind", "127.0.0.1:0")
    assert demo.stdout
    demo.stdout.close()
    _, errors = finish(demo)
    assert (demo.returncode, errors) == (2, "relay: the output was closed\n")
    assert_nothing_is_left(folder)


@pytest.mark.slow
def test_a_video_that_is_none_is_one_line_and_exit_code_2(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "film.mp4"
    broken.write_bytes(b"not a film")
    demo = start_demo(folder, "--bind", "127.0.0.1:0", "--video", str(broken))
    output, errors = finish(demo)
    assert (demo.returncode, output) == (2, "")
    assert re.fullmatch(r"relay: cannot play \S+film\.mp4: Invalid data .*\n", errors)
    assert_nothing_is_left(folder)


def test_a_port_that_was_asked_for_and_is_taken_is_one_line_and_exit_code_2(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        demo = start_demo(folder, "--bind", where)
        _, errors = finish(demo)
    assert (demo.returncode, errors) == (
        2,
        f"relay: bind: {where} is in use; choose another port\n",
    )
    assert_nothing_is_left(folder)
