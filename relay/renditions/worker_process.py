"""The worker process, as relay sees it. Nothing that it says is believed without a check."""

from __future__ import annotations

import fcntl
import math
import os
import signal
import struct
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import trio
from attrs import define, frozen

from relay.concurrency.exact_reads import receive_exactly
from relay.renditions.jpeg_header import Buffer, Size, read_size
from relay.renditions.sizes import max_bytes
from relay.renditions.worker import ANSWER, LENGTH, LIBRARY_MISSING, REQUEST, SIZE, AnswerKind

LIBRARIES = ("simplejpeg", "numpy")
WORKER_START_TIMEOUT = 10.0
"""Seconds for the start of a worker, which mostly imports numpy."""
END_TIMEOUT = 5.0
"""Seconds for a killed worker to be gone; the kernel needs none, unless the disk hangs."""
PIPE_BYTES = 1 << 20
"""A picture that fits needs no turn of relay's own for each 64 KiB."""


class WorkerGone(Exception):
    """The worker process ended, or is not to be used any more."""


class WorkerLied(WorkerGone):
    """The worker answered what it cannot have made of the request."""


class WorkerTooSlow(WorkerGone):
    """The worker took too long for a picture."""


class RelayStalled(WorkerGone):
    """relay itself did nothing for so long that nobody knows how long the worker took."""


class LibraryUnusable(Exception):
    """simplejpeg is there, and the worker cannot import it."""


@frozen
class Answer:
    """The worker's answer to a request."""

    verdict: AnswerKind
    cpu_seconds: float
    """Of the worker since the answer before."""
    pictures: Sequence[bytes] = ()


@define(eq=False, repr=False)
class RenditionWorker:
    """A worker that is ready for a picture."""

    _process: trio.Process
    isolated: bool = False
    """Whether it has no network of its own."""
    cpu_seconds: float = 0.0
    """CPU seconds up to the last answer, the start included."""

    @property
    def has_ended(self) -> bool:
        return self._process.returncode is not None

    async def greet(self) -> None:
        """Wait until it is ready; `WorkerGone`, `LibraryUnusable`."""
        try:
            answer = await self._receive(())
        except WorkerLied:
            raise
        except WorkerGone:
            if self._process.returncode == LIBRARY_MISSING:
                raise LibraryUnusable from None
            raise
        if answer.verdict not in (AnswerKind.READY, AnswerKind.ISOLATED):
            raise WorkerLied("it began with the wrong message")
        self.isolated = answer.verdict is AnswerKind.ISOLATED

    async def render(self, picture: Buffer, size: Size, sizes: Sequence[Size]) -> Answer:
        """Have the picture made in these sizes. Not to be used again when cancelled.

        Raises `WorkerGone` when the worker ended, and `WorkerLied`.
        """
        assert self._process.stdin is not None
        header = REQUEST.pack(len(picture), *size, len(sizes))
        try:
            await self._process.stdin.send_all(header + b"".join(SIZE.pack(*s) for s in sizes))
            await self._process.stdin.send_all(picture)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise await self._ending() from None
        answer = await self._receive(sizes)
        if answer.verdict not in (AnswerKind.MADE, AnswerKind.UNDECODABLE):
            raise WorkerLied("it answered with the wrong message")
        return answer

    async def _receive(self, sizes: Sequence[Size]) -> Answer:
        kind, cpu_seconds, count = ANSWER.unpack(await self._read(ANSWER.size))
        if kind not in list(AnswerKind) or count != (len(sizes) if kind == AnswerKind.MADE else 0):
            raise WorkerLied("its answer does not fit the request")
        if not (math.isfinite(cpu_seconds) and cpu_seconds >= self.cpu_seconds):
            raise WorkerLied("its CPU time is not a number that grows")
        spent, self.cpu_seconds = cpu_seconds - self.cpu_seconds, cpu_seconds
        if kind != AnswerKind.MADE:
            return Answer(AnswerKind(kind), spent)
        lengths = struct.unpack(f"<{count}I", await self._read(LENGTH.size * count))
        if any(length > max_bytes(size) for length, size in zip(lengths, sizes, strict=True)):
            raise WorkerLied("its picture is too large")
        pictures = [await self._read(length) for length in lengths]
        if [read_size(picture) for picture in pictures] != list(sizes):
            raise WorkerLied("its picture is no JPEG of the size that was asked for")
        return Answer(AnswerKind.MADE, spent, pictures)

    async def _read(self, count: int) -> bytes:
        assert self._process.stdout is not None
        try:
            return await receive_exactly(self._process.stdout, count)
        except (EOFError, trio.BrokenResourceError, trio.ClosedResourceError):
            raise await self._ending() from None

    async def _ending(self) -> WorkerGone:
        """How it ended. It has closed its pipe."""
        self._process.kill()  # if it goes on nevertheless
        status = await self._process.wait()
        if status == -signal.SIGPROF:
            return WorkerTooSlow("it took too much CPU time")
        return WorkerGone(f"signal {-status}" if status < 0 else f"exit status {status}")


@asynccontextmanager
async def open_worker(command: Sequence[str]) -> AsyncIterator[RenditionWorker]:
    """Start a worker and wait until it is ready; it is killed at the end of the block.

    Raises `WorkerGone`, `LibraryUnusable`, and OSError when no process can be started.
    """
    process = await trio.lowlevel.open_process(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
        env=_environment(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for pipe in (process.stdin, process.stdout):
            _enlarge(pipe)
        worker = RenditionWorker(process)
        with trio.move_on_after(WORKER_START_TIMEOUT) as starting:
            await worker.greet()
        if starting.cancelled_caught:
            raise WorkerGone("it was not ready in time")
        yield worker
    finally:
        process.kill()
        with trio.move_on_after(END_TIMEOUT, shield=True):
            await process.stdin.aclose()
            await process.stdout.aclose()
            await process.wait()


def find_library_folders() -> list[str]:
    """The folders from which to import what a worker needs; empty where it is not installed."""
    folders = []
    for name in LIBRARIES:
        found = find_spec(name)
        if found is None or found.origin is None:
            return []
        folders.append(str(Path(found.origin).parent.parent))
    return folders


def _environment() -> dict[str, str]:
    """All variables of a worker: none is a secret. One thread takes less memory than one a core."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {**kept, "LC_ALL": "C", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def _enlarge(pipe: object) -> None:
    if isinstance(pipe, trio.lowlevel.FdStream) and hasattr(fcntl, "F_SETPIPE_SZ"):  # Linux
        with suppress(OSError):  # users have a limit
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
