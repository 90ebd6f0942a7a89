"""Stills and clips as files of this machine.

All work is done in threads, with calls that go by open folders and follow no symbolic link. A file
is written under another name, and renamed when it is whole.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import trio
from attrs import define, field

from relay.clips.storage import NotStored
from relay.model.alerts.alert_picture import PictureName

MAX_FOLDER_THREADS = 4
"""Threads that use the folder at a time. One that hangs is left alone, and occupies its place."""
MIN_FREE_BYTES = 1 << 30
"""That are left free: the same disk may hold the database, without which no alert is stored."""
UNFINISHED_SECONDS = 3600.0
"""Age of an unfinished file that nobody writes any more."""
_ID_FILE = ".relay-folder"
_ID_LENGTH = 32
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

T = TypeVar("T")


@define(eq=False, repr=False)
class FolderStorage:
    """A `PictureStorage` in a folder, which is made when it is first needed."""

    _folder: Path
    _min_free: int = MIN_FREE_BYTES
    _threads: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(MAX_FOLDER_THREADS))
    _place: str | None = None

    async def place(self) -> str:
        if self._place is None:
            self._place = await self.in_thread(self._identify)
        return self._place

    async def write(self, name: PictureName, pieces: Sequence[bytes]) -> None:
        await self.in_thread(lambda: self._write(name, pieces))

    @asynccontextmanager
    async def open(self, name: PictureName) -> AsyncIterator[FolderFile]:
        file = FolderFile(self)
        try:
            await self.in_thread(lambda: file.begin(self._folder, name))
            yield file
        finally:
            file.close()

    async def remove(self, names: Sequence[PictureName]) -> None:
        await self.in_thread(lambda: self._remove(names))

    async def check(self) -> None:
        await self.place()

    async def sweep(self, before_day: int) -> None:
        await self.in_thread(lambda: self._sweep(before_day))

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do work in a thread, which goes on by itself when this is cancelled; `NotStored`."""
        try:
            return await trio.to_thread.run_sync(
                work, limiter=self._threads, abandon_on_cancel=True
            )
        except OSError as problem:
            raise NotStored(f"{problem.strerror or type(problem).__name__}") from None

    # -- in threads

    def _identify(self) -> str:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _opened(self._folder) as folder:
            with suppress(FileNotFoundError):
                return _read_id(folder)
            temporary = f".{secrets.token_hex(8)}"
            with _new_file(temporary, folder) as file:
                os.write(file, secrets.token_hex(_ID_LENGTH // 2).encode())
            try:
                # Of several that do this at once, the first is right.
                with suppress(FileExistsError):
                    os.link(temporary, _ID_FILE, src_dir_fd=folder, dst_dir_fd=folder)
            finally:
                os.unlink(temporary, dir_fd=folder)
            return _read_id(folder)

    def _write(self, name: PictureName, pieces: Sequence[bytes]) -> None:
        with _opened(self._folder) as folder:
            self._check_room(folder, sum(map(len, pieces)))
            with suppress(FileExistsError):
                os.mkdir(name.folder, 0o700, dir_fd=folder)
            with _opened(name.folder, folder) as day:
                temporary = f".{name.file}.{secrets.token_hex(8)}"
                try:
                    with _new_file(temporary, day) as file:
                        for piece in pieces:
                            _write_all(file, piece)
                        os.fsync(file)
                    os.rename(temporary, name.file, src_dir_fd=day, dst_dir_fd=day)
                except BaseException:
                    with suppress(OSError):
                        os.unlink(temporary, dir_fd=day)
                    raise

    def _check_room(self, folder: int, size: int) -> None:
        found = os.fstatvfs(folder)
        if found.f_bavail * found.f_frsize - size < self._min_free:
            raise OSError(errno.ENOSPC, "the disk is nearly full")

    def _remove(self, names: Sequence[PictureName]) -> None:
        try:
            with _opened(self._folder) as folder:
                for name in names:
                    with suppress(FileNotFoundError), _opened(name.folder, folder) as day:
                        os.unlink(name.file, dir_fd=day)
        except FileNotFoundError:
            pass  # nothing was ever kept

    def _sweep(self, before_day: int) -> None:
        try:
            with _opened(self._folder) as folder:
                for day in _days_in(folder):
                    _sweep_day(folder, day, whole=int(day) < before_day)
        except FileNotFoundError:
            pass


@define(eq=False, repr=False)
class FolderFile:
    """A `PictureFile`. A thread that is left alone may be at it still when it is closed."""

    _storage: FolderStorage
    _file: int | None = None
    size: int = 0
    _at: int = 0
    """Of the next byte to be read."""
    _closed: bool = False
    _lock: threading.Lock = field(factory=threading.Lock)
    """Held while a thread uses the file."""

    def begin(self, folder: Path, name: PictureName) -> None:
        """Open it, in a thread; OSError."""
        with self._lock, _opened(folder) as root, _opened(name.folder, root) as day:
            self._file = os.open(name.file, _READ_FLAGS, dir_fd=day)
            found = os.fstat(self._file)
            self.size = found.st_size
        self._close_if_closed()
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no file")

    async def read(self, count: int) -> bytes:
        """The next bytes."""
        return await self._storage.in_thread(lambda: self._read(count))

    def seek(self, at: int) -> None:
        self._at = at

    def _read(self, count: int) -> bytes:
        with self._lock:
            if self._file is None:
                raise OSError(errno.EBADF, "it is closed")
            found = os.pread(self._file, count, self._at)
            self._at += len(found)
        self._close_if_closed()
        return found

    def _close_if_closed(self) -> None:
        if self._closed:
            self.close()

    def close(self) -> None:
        """Close it, or have the thread close it that uses it."""
        self._closed = True
        if self._lock.acquire(blocking=False):
            try:
                file, self._file = self._file, None
                if file is not None:
                    os.close(file)
            finally:
                self._lock.release()


@contextmanager
def _opened(path: Path | str, folder: int | None = None) -> Iterator[int]:
    opened = os.open(path, _FOLDER_FLAGS, dir_fd=folder)
    try:
        yield opened
    finally:
        os.close(opened)


@contextmanager
def _new_file(name: str, folder: int) -> Iterator[int]:
    file = os.open(name, _NEW_FLAGS, 0o600, dir_fd=folder)
    try:
        yield file
    finally:
        os.close(file)


def _write_all(file: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(file, view) :]


def _read_id(folder: int) -> str:
    file = os.open(_ID_FILE, _READ_FLAGS, dir_fd=folder)
    try:
        return f"folder:{os.read(file, _ID_LENGTH).decode('ascii', 'replace')}"
    finally:
        os.close(file)


def _days_in(folder: int) -> list[str]:
    return [each for each in _names_in(folder) if each.isdecimal() and each.isascii()]


def _names_in(folder: int) -> list[str]:
    with os.scandir(folder) as found:
        return [each.name for each in found]


def _sweep_day(folder: int, day: str, *, whole: bool) -> None:
    """Remove a folder of one day, or what was not finished there."""
    try:
        with _opened(day, folder) as opened:
            for name in _names_in(opened):
                if whole or (name.startswith(".") and _is_stale(name, opened)):
                    with suppress(OSError):
                        os.unlink(name, dir_fd=opened)
        if whole:
            os.rmdir(day, dir_fd=folder)
    except OSError:
        pass  # it is no folder of ours, or somebody else is at it


def _is_stale(name: str, folder: int) -> bool:
    with suppress(OSError):
        changed = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime
        return time.time() - changed > UNFINISHED_SECONDS
    return False
