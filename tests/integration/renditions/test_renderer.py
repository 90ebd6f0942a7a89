"""The renderer with real worker processes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import trio
import trio.testing
from attrs import define
from structlog.testing import capture_logs

from relay.metrics import Metrics, RenditionOutcome
from relay.renditions import renderer as renderer_module
from relay.renditions import setup, worker, worker_process
from relay.renditions.jpeg_header import read_orientation, read_size, with_orientation
from relay.renditions.renderer import Renderer
from relay.renditions.worker import worker_command
from relay.renditions.worker_process import RenditionWorker, find_library_folders, open_worker
from relay.settings.settings import Settings

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="platform: looks into /proc")
LONG = 30.0
"""Seconds: no test waits for so long, unless something is broken."""


def picture(width: int = 640, height: int = 360, *, grey: bool = False, seed: int = 0) -> bytes:
    """A picture of large squares, which survive being made smaller."""
    squares = np.random.default_rng(seed).integers(0, 255, (height // 40 + 1, width // 40 + 1, 3))
    pixels = squares.astype(np.uint8).repeat(40, 0).repeat(40, 1)[:height, :width]
    colours, subsampling, channels = ("GRAY", "Gray", 1) if grey else ("RGB", "420", 3)
    pixels = np.ascontiguousarray(pixels[:, :, :channels])
    return bytes(simplejpeg.encode_jpeg(pixels, 85, colours, subsampling))


@define(eq=False)
class Bench:
    renderer: Renderer
    metrics: Metrics

    async def render(
        self, owner: str = "ana", data: bytes = b"", widths: Sequence[int] = (320, 160)
    ) -> dict[int, bytes]:
        with trio.fail_after(LONG):
            return dict(await self.renderer.render(owner, data or picture(), widths))

    def can_render(self, owner: str) -> bool:
        return self.renderer.can_render(owner, trio.current_time())

    async def until_can_render(self, owner: str) -> None:
        with trio.fail_after(LONG):
            while not self.can_render(owner):  # noqa: ASYNC110 (time makes it so)
                await trio.sleep(0.01)

    def count(self, outcome: RenditionOutcome) -> int:
        return self.metrics.renditions[outcome]


@asynccontextmanager
async def open_bench(
    command: Sequence[str] | None = None, cores: float = 1.0
) -> AsyncIterator[Bench]:
    metrics = Metrics()
    renderer = Renderer(metrics, command or worker_command(find_library_folders()), cores)
    async with trio.open_nursery() as nursery:
        await nursery.start(renderer.run)
        yield Bench(renderer, metrics)
        nursery.cancel_scope.cancel()


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[trio.Process]:
    """The worker processes that are started, in order."""
    started: list[trio.Process] = []

    @asynccontextmanager
    async def noting(command: Sequence[str]) -> AsyncIterator[RenditionWorker]:
        async with open_worker(command) as process:
            started.append(process._process)
            yield process

    monkeypatch.setattr(renderer_module, "open_worker", noting)
    return started


@pytest.mark.parametrize("grey", [False, True])
async def test_a_picture_is_made_smaller_in_each_width(grey: bool) -> None:
    original = picture(1280, 720, grey=grey)
    async with open_bench() as bench:
        made = await bench.render(data=original, widths=[640, 320])
    assert {width: read_size(small) for width, small in made.items()} == {
        640: (640, 360),
        320: (320, 180),
    }
    for width, small in made.items():
        shown = simplejpeg.decode_jpeg(small, "GRAY").astype(int)
        wanted = simplejpeg.decode_jpeg(original, "GRAY")[:: 1280 // width, :: 1280 // width]
        assert abs(shown - wanted).mean() < 12
    assert bench.count(RenditionOutcome.MADE) == 1
    assert sum(bench.metrics.rendition_time.counts) == 1


async def test_the_orientation_of_a_photo_stays() -> None:
    async with open_bench() as bench:
        made = await bench.render(data=with_orientation(picture(), 6), widths=[320])
    assert read_orientation(made[320]) == 6
    assert simplejpeg.decode_jpeg(made[320]).shape == (180, 320, 3)


async def test_a_buffer_that_is_no_bytes_will_do() -> None:
    async with open_bench() as bench:
        whole = bytearray(b"before" + picture())
        assert await bench.renderer.render("ana", memoryview(whole)[6:], [320])


def bomb(width: int, height: int) -> bytes:
    """A small picture whose header says that it is large."""
    data = bytearray(picture())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        (bomb(65535, 65535), RenditionOutcome.UNSUITABLE),
        (bomb(4096, 4000), RenditionOutcome.UNSUITABLE),
        (b"\xff\xd8", RenditionOutcome.UNSUITABLE),
        (picture().replace(b"\x03\x01\x22\0", b"\x04\x01\x22\0", 1), RenditionOutcome.UNSUITABLE),
        (b"\x89PNG", RenditionOutcome.UNSUITABLE),
        (
            picture().replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
            RenditionOutcome.UNSUITABLE,
        ),
        (picture()[:300], RenditionOutcome.UNDECODABLE),
        (picture().replace(b"\xff\xda", b"\xff\xd9"), RenditionOutcome.UNDECODABLE),
    ],
)
async def test_what_cannot_be_made_smaller_harms_nobody(
    data: bytes, outcome: RenditionOutcome, workers: list[trio.Process]
) -> None:
    async with open_bench() as bench:
        assert await bench.render(data=data) == {}
        assert bench.count(outcome) == 1
        assert await bench.render()
        assert len(workers) == 1


async def test_a_picture_of_one_pixel_and_a_large_bomb_within_the_bounds_are_made() -> None:
    async with open_bench() as bench:
        assert list(await bench.render(data=picture(1, 1), widths=[1])) == [1]
        await bench.render(data=bomb(4000, 4000), widths=[500])  # what is there is shown, or not
        await bench.until_can_render("ben")
        assert await bench.render("ben")


async def test_a_progressive_picture_is_made_smaller() -> None:
    progressive = (Path(__file__).parent / "progressive.jpg").read_bytes()
    assert b"\xff\xc2" in progressive
    async with open_bench() as bench:
        made = await bench.render(data=progressive, widths=[32])
    assert read_size(made[32]) == (32, 24)


def endless_picture() -> bytes:
    """A progressive picture, large within the bounds, that is refined hundreds of times."""
    data = (Path(__file__).parent / "progressive.jpg").read_bytes()
    frame, scan = data.index(b"\xff\xc2"), data.index(b"\xff\xda")
    side = (4000).to_bytes(2, "big")
    head = data[: frame + 5] + 2 * side + data[frame + 9 : scan]
    return head + 500 * data[scan:-2] + data[-2:]


async def test_a_picture_that_takes_too_long_is_ended_by_the_kernel(
    workers: list[trio.Process],
) -> None:
    async with open_bench() as bench:
        assert await bench.render("ana", endless_picture(), widths=[500]) == {}
        assert bench.count(RenditionOutcome.KILLED) == 1
        assert workers[0].returncode == -signal.SIGPROF
        assert not bench.can_render("ana")
        await bench.until_can_render("ben")
        assert await bench.render("ben")


async def test_a_hanging_worker_costs_one_picture_and_its_owner_the_renditions(
    workers: list[trio.Process],
) -> None:
    async with open_bench() as bench:
        assert await bench.render("ana")
        workers[0].send_signal(signal.SIGSTOP)
        results: dict[str, dict[int, bytes]] = {}

        async def render(owner: str) -> None:
            results[owner] = await bench.render(owner)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(render, "ana")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(render, "ben")
        assert results["ana"] == {}
        assert results["ben"]
        assert bench.count(RenditionOutcome.KILLED) == 1
        assert len(workers) == 2
        await bench.until_can_render("ben")
        assert not bench.can_render("ana")
        assert await bench.render("ana") == {}
        assert bench.count(RenditionOutcome.BANNED) == 1


async def test_nobody_is_to_blame_when_relay_stood_still(
    workers: list[trio.Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_bench() as bench:
        assert await bench.render("ana")
        monkeypatch.setattr(renderer_module, "PICTURE_TIMEOUT", 0.05)
        workers[0].send_signal(signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.render, "ana")
            await trio.testing.wait_all_tasks_blocked()
            time.sleep(0.5)  # noqa: ASYNC251 (that is the point)
        monkeypatch.undo()
        assert bench.count(RenditionOutcome.UNAVAILABLE) == 1
        await bench.until_can_render("ana")
        assert await bench.render("ana")


async def test_a_ban_ends(workers: list[trio.Process], monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_bench() as bench:
        await bench.render("ana", widths=[320])
        monkeypatch.setattr(renderer_module, "OWNER_BAN", 0.01)
        monkeypatch.setattr(renderer_module, "PICTURE_TIMEOUT", 0.01)
        workers[0].send_signal(signal.SIGSTOP)
        assert await bench.render("ana") == {}
        monkeypatch.undo()
        await bench.until_can_render("ana")
        assert await bench.render("ana")


async def test_a_worker_that_ended_while_it_was_idle_is_nobodys_fault(
    workers: list[trio.Process],
) -> None:
    async with open_bench() as bench:
        await bench.render("ana")
        workers[0].kill()
        await workers[0].wait()
        assert await bench.render("ana")
        assert len(workers) == 2


FAKE = """
import sys
sys.path.insert(0, {folder!r})
import worker
say, ask = sys.stdout.buffer, sys.stdin.buffer
def answer(verdict, *pictures, cpu=1.0):
    say.write(worker.ANSWER.pack(verdict, cpu, len(pictures)))
    say.write(b"".join(worker.LENGTH.pack(len(each)) for each in pictures) + b"".join(pictures))
    say.flush()
answer(worker.AnswerKind.READY, cpu=0.5)
ask.read(1)
{then}
sys.stdin.buffer.read()
"""


def fake(then: str) -> list[str]:
    """A worker that does this with its first picture."""
    program = FAKE.format(folder=str(Path(worker.__file__).parent), then=textwrap.dedent(then))
    return [sys.executable, "-c", program]


@pytest.mark.parametrize(
    "then",
    [
        "sys.exit(1)",
        "import os; os.kill(os.getpid(), 11)",
        "say.write(b'x' * 100_000); say.flush()",
        "answer(2)",
        "answer(0)",
        "answer(7)",
        "answer(3, b'')",
        "answer(2, b'', b'')",
        "answer(2, b'<html>', b'<html>')",
        "answer(2, bytes(1 << 20), bytes(1 << 20))",
        "answer(3, cpu=-1.0)",
        "answer(3, cpu=float('nan'))",
    ],
)
async def test_a_worker_that_crashes_or_lies_is_replaced(
    then: str, workers: list[trio.Process]
) -> None:
    async with open_bench(fake(then)) as bench:
        assert await bench.render("ana") == {}
        assert bench.count(RenditionOutcome.CRASHED) == 1
        assert not bench.can_render("ana")
        await bench.until_can_render("ben")
    assert workers[0].returncode is not None


async def test_a_picture_of_another_size_than_asked_for_is_a_lie() -> None:
    small = picture(320, 200)
    async with open_bench(fake(f"answer(2, {small!r})")) as bench:
        assert await bench.render("ana", widths=[320]) == {}
        assert bench.count(RenditionOutcome.CRASHED) == 1


async def test_the_kernel_ends_a_worker_that_computes_for_too_long() -> None:
    hang = """
    import signal
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, worker.PICTURE_CPU_SECONDS)
    while True: pass
    """
    async with open_bench(fake(hang)) as bench:
        assert await bench.render("ana") == {}
        assert bench.count(RenditionOutcome.KILLED) == 1


async def test_without_a_working_library_renditions_are_off_for_good() -> None:
    async with open_bench([*worker_command([])[:1], "-I", "-S", worker.__file__]) as bench:
        assert bench.renderer.available
        assert await bench.render("ana") == {}
        assert not bench.renderer.available
        assert not bench.can_render("ana")


async def test_a_worker_that_does_not_start_leaves_pictures_unmade(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(renderer_module, "TURN_TIMEOUT", 0.3)
    async with open_bench(["/nonexistent/python"]) as bench:
        assert await bench.render("ana") == {}
        assert bench.count(RenditionOutcome.UNAVAILABLE) == 1


async def test_over_the_budget_nothing_is_made() -> None:
    async with open_bench(fake("answer(3, cpu=1.5)")) as bench:
        await bench.render("ana")
        assert not bench.can_render("ben")
        assert await bench.render("ben") == {}
        assert bench.count(RenditionOutcome.OVER_BUDGET) == 1


async def test_without_cores_there_are_no_renditions() -> None:
    async with open_bench(cores=0.0) as bench:
        assert not bench.renderer.available
        assert await bench.render("ana") == {}


async def test_a_picture_that_is_not_wanted_any_more_leaves_the_worker_in_order(
    workers: list[trio.Process],
) -> None:
    async with open_bench() as bench:
        await bench.render("ana")
        for _ in range(20):
            with trio.move_on_after(0.002):
                await bench.renderer.render("ana", picture(1280, 720), [640, 320])
        assert read_size((await bench.render("ana", widths=[80]))[80]) == (80, 45)
        assert len(workers) == 1


async def test_only_so_many_pictures_wait(workers: list[trio.Process]) -> None:
    async with open_bench() as bench:
        await bench.render("ana")
        workers[0].send_signal(signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            for number in range(renderer_module.MAX_WAITING_PICTURES + 1):
                assert bench.can_render(f"user-{number}")
                nursery.start_soon(bench.render, f"user-{number}")
                await trio.testing.wait_all_tasks_blocked()
            assert not bench.can_render("ana")
            workers[0].send_signal(signal.SIGCONT)
        await bench.until_can_render("ana")


async def test_few_pictures_of_one_user_wait(workers: list[trio.Process]) -> None:
    async with open_bench() as bench:
        await bench.render("ana")
        workers[0].send_signal(signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            for _ in range(renderer_module.MAX_WAITING_PICTURES_OF_OWNER + 1):
                assert bench.can_render("ana")
                nursery.start_soon(bench.render, "ana")
                await trio.testing.wait_all_tasks_blocked()
            assert not bench.can_render("ana")
            assert bench.can_render("ben")
            workers[0].send_signal(signal.SIGCONT)


async def test_an_idle_worker_ends_and_the_next_picture_starts_another(
    workers: list[trio.Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renderer_module, "IDLE_TIMEOUT", 0.01)
    async with open_bench() as bench:
        await bench.render("ana")
        with trio.fail_after(LONG):
            assert await workers[0].wait() is not None
        assert await bench.render("ana")
        assert len(workers) == 2


async def test_a_worker_is_replaced_after_its_time(
    workers: list[trio.Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_bench() as bench:
        await bench.render("ana")
        monkeypatch.setattr(renderer_module, "RETIREMENT_CPU_SECONDS", 0.0)
        await bench.render("ana")
        monkeypatch.undo()
    assert workers[0].returncode is not None


@pytest.fixture
def inheritable() -> Iterator[None]:
    """A file of relay's that every child would inherit which is not kept from it."""
    with Path(__file__).open() as file:
        os.set_inheritable(file.fileno(), True)
        yield


def assert_confined(pid: int) -> None:
    """Look at a process from outside: its files, variables and limits."""
    place = Path("/proc") / str(pid)
    files = {each.name: str(each.readlink()) for each in (place / "fd").iterdir()}
    assert sorted(files) == ["0", "1", "2"]
    assert [files[name].partition(":")[0] for name in "012"] == ["pipe", "pipe", "/dev/null"]
    variables = (place / "environ").read_bytes().split(b"\0")
    names = {each.partition(b"=")[0].decode() for each in variables if each}
    assert names <= {"LC_ALL", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "LD_LIBRARY_PATH"}
    limits = (place / "limits").read_text()
    bounds = {"open files": 0, "processes": 0, "file size": 0, "core file size": 0}
    for name, bound in {**bounds, "address space": worker.MAX_MEMORY}.items():
        (line,) = (each for each in limits.splitlines() if each.startswith(f"Max {name} "))
        assert line.removeprefix(f"Max {name}").split()[:2] == [str(bound)] * 2
    assert "NoNewPrivs:\t1" in (place / "status").read_text()
    assert os.getsid(pid) == pid


def network_of(pid: int) -> Path:
    return (Path("/proc") / str(pid) / "ns" / "net").readlink()


@linux_only
async def test_a_worker_has_its_pipes_few_rights_and_no_secrets(
    workers: list[trio.Process], monkeypatch: pytest.MonkeyPatch, inheritable: None
) -> None:
    monkeypatch.setenv("RELAY_DATABASE_URL", "postgresql://secret@db/relay")
    async with open_bench() as bench:
        await bench.render("ana")
        assert_confined(workers[0].pid)


@linux_only
async def test_a_worker_says_rightly_whether_it_has_a_network(workers: list[trio.Process]) -> None:
    async with open_worker(worker_command(find_library_folders())) as process:
        alone = network_of(process._process.pid) != network_of(os.getpid())
        assert process.isolated == alone


WITHOUT_NAMESPACES = """
import ctypes, runpy, sys
class Refuses:
    def __init__(self, name): pass
    def prctl(self, *_): return -1
    def unshare(self, _): return -1
ctypes.CDLL = Refuses
sys.argv = [sys.argv[1], *sys.argv[2:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


async def test_where_the_kernel_isolates_no_process_pictures_are_made_all_the_same() -> None:
    _, _, script, *folders = worker_command(find_library_folders())
    command = [sys.executable, "-I", "-c", WITHOUT_NAMESPACES, script, *folders]
    async with open_worker(command) as process:
        assert not process.isolated
    async with open_bench(command) as bench:
        assert await bench.render("ana")


def test_a_worker_ends_with_relay_and_not_with_signals_to_all() -> None:
    command = worker_command(find_library_folders())
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.read(worker.ANSWER.size)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process.send_signal(number)
        process.stdin.write(worker.REQUEST.pack(1, 1, 1, 0) + b"x")
        process.stdin.flush()
        assert process.stdout.read(worker.ANSWER.size)
        process.stdin.close()  # which the kernel does when relay is killed
        assert process.wait(LONG) == 0


HOLDER = """
import sys, trio
from relay.renditions.worker import worker_command
from relay.renditions.worker_process import find_library_folders, open_worker
async def main():
    async with open_worker(worker_command(find_library_folders())) as worker:
        print(worker._process.pid, flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


@linux_only
def test_a_worker_is_gone_when_relay_was_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE) as relay:
        assert relay.stdout is not None
        pid = int(relay.stdout.readline())
        descriptor = os.pidfd_open(pid)
        relay.kill()
    try:
        assert select.select([descriptor], [], [], LONG)[0]
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("missing", ["simplejpeg", "numpy"])
def test_where_a_library_is_missing_renditions_are_off_and_the_log_says_so(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        worker_process, "find_spec", lambda name: None if name == missing else find_spec(name)
    )
    with capture_logs() as lines:
        assert not setup.make_renderer(Settings(), Metrics()).available
        assert not setup.make_renderer(Settings(renditions="off"), Metrics()).available
    (line,) = lines
    assert line["event"].startswith("renditions are off")


def test_renditions_can_be_switched_off() -> None:
    assert setup.make_renderer(Settings(), Metrics()).available
    assert not setup.make_renderer(Settings(renditions="off"), Metrics()).available
