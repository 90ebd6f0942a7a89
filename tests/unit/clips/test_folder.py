"""Files of stills and clips: whole or not at all, for nobody else, and through no symbolic link."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest
import trio

from relay.clips.folder import FolderStorage
from relay.clips.storage import NotStored
from relay.model.alerts.alert_picture import MICROSECONDS_A_DAY, PictureName

ALERT_ID = 20_000 * MICROSECONDS_A_DAY + 17
STILL, CLIP = PictureName(ALERT_ID, "still"), PictureName(ALERT_ID, "clip")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "pictures"


@pytest.fixture
def storage(folder: Path) -> FolderStorage:
    return FolderStorage(folder, min_free=0)


async def keep(storage: FolderStorage, name: PictureName = STILL, content: bytes = b"abc") -> None:
    await storage.place()
    await storage.write(name, [content[:1], content[1:]])


async def content_of(storage: FolderStorage, name: PictureName = STILL) -> bytes:
    async with storage.open(name) as file:
        found = await file.read(2)
        while more := await file.read(1000):
            found += more
        assert file.size == len(found)
        return found


def files_in(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.rglob("*") if each.is_file())


def modes_in(folder: Path) -> tuple[set[int], set[int]]:
    """Of files, and of folders."""
    found = [folder, *folder.rglob("*")]
    files = {stat.S_IMODE(each.stat().st_mode) for each in found if each.is_file()}
    return files, {stat.S_IMODE(each.stat().st_mode) for each in found if each.is_dir()}


def open_files() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


async def test_a_file_is_read_as_it_was_written(storage: FolderStorage, folder: Path) -> None:
    await keep(storage)
    assert await content_of(storage) == b"abc"
    assert (folder / "20000" / f"{ALERT_ID}.jpg").read_bytes() == b"abc"


async def test_a_file_is_read_from_any_place(storage: FolderStorage) -> None:
    await keep(storage, content=b"abcdef")
    async with storage.open(STILL) as file:
        assert await file.read(2) == b"ab"
        file.seek(4)
        assert [await file.read(1), await file.read(9), await file.read(9)] == [b"e", b"f", b""]
        file.seek(1)
        assert await file.read(2) == b"bc"


async def test_nobody_else_may_read_them(storage: FolderStorage, folder: Path) -> None:
    await keep(storage)
    assert modes_in(folder) == ({0o600}, {0o700})


async def test_nothing_is_made_before_it_is_needed(storage: FolderStorage, folder: Path) -> None:
    await storage.remove([STILL])
    await storage.sweep(30_000)
    with pytest.raises(NotStored):
        await content_of(storage)
    assert files_in(folder.parent) == []


async def test_those_who_share_a_folder_know_it(storage: FolderStorage, folder: Path) -> None:
    names: list[str] = []

    async def ask() -> None:
        names.append(await FolderStorage(folder).place())

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(ask)
    assert len(set(names)) == 1
    assert names[0] != await FolderStorage(folder.with_name("other")).place()
    assert files_in(folder) == [".relay-folder"]


async def test_a_file_that_cannot_be_finished_leaves_nothing(
    storage: FolderStorage, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await storage.place()

    def fail(_file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(NotStored, match="No space left"):
        await storage.write(STILL, [b"abc"])
    assert files_in(folder) == [".relay-folder"]


async def test_room_is_left_on_the_disk(folder: Path) -> None:
    storage = FolderStorage(folder, min_free=1 << 60)
    await storage.place()
    with pytest.raises(NotStored, match="nearly full"):
        await storage.write(STILL, [b"abc"])


def put_link(what: str, folder: Path, elsewhere: Path) -> Path:
    """Put a symbolic link in place of the folder, of a day or of a file; returns what it hides."""
    (elsewhere / "20000").mkdir(parents=True)
    secret = elsewhere / "20000" / STILL.file
    secret.write_bytes(b"secret")
    if what == "folder":
        folder.rename(folder.with_name("before"))
        folder.symlink_to(elsewhere)
    elif what == "day":
        (folder / "20000").symlink_to(elsewhere / "20000")
    else:
        (folder / "20000").mkdir()
        (folder / "20000" / STILL.file).symlink_to(secret)
    return secret


@pytest.mark.parametrize("what", ["folder", "day", "file"])
async def test_no_symbolic_link_is_followed(
    storage: FolderStorage, folder: Path, tmp_path: Path, what: str
) -> None:
    await storage.place()
    secret = put_link(what, folder, tmp_path / "elsewhere")
    with pytest.raises(NotStored):
        await content_of(storage)
    if what != "file":  # a file is replaced, whatever it is
        with pytest.raises(NotStored):
            await storage.write(STILL, [b"abc"])
    else:
        await storage.write(STILL, [b"abc"])
    assert secret.read_bytes() == b"secret"


async def test_what_is_no_file_is_not_read(storage: FolderStorage, folder: Path) -> None:
    await storage.place()
    (folder / "20000").mkdir()
    os.mkfifo(folder / "20000" / f"{ALERT_ID}.jpg")
    with trio.fail_after(5), pytest.raises(NotStored, match="no file"):
        await content_of(storage)


async def test_files_are_removed_by_name(storage: FolderStorage) -> None:
    await keep(storage)
    await keep(storage, CLIP, b"clip")
    await storage.remove([STILL, PictureName(1, "clip")])
    with pytest.raises(NotStored):
        await content_of(storage)
    assert await content_of(storage, CLIP) == b"clip"


async def test_old_days_and_unfinished_files_are_swept(
    storage: FolderStorage, folder: Path
) -> None:
    await keep(storage)
    later = PictureName(20_005 * MICROSECONDS_A_DAY, "still")
    await keep(storage, later)
    (folder / "notes.txt").write_text("of somebody else")
    for name, age in (("old", 7200), ("new", 0)):
        unfinished = folder / "20005" / f".{name}.jpg.0123"
        unfinished.touch()
        os.utime(unfinished, (time.time() - age, time.time() - age))
    await storage.sweep(20_003)
    assert files_in(folder) == sorted([".new.jpg.0123", ".relay-folder", "notes.txt", later.file])


async def test_a_reader_that_leaves_closes_the_file(storage: FolderStorage) -> None:
    await keep(storage)
    before = open_files()
    for _ in range(20):
        with trio.move_on_after(0):
            async with storage.open(STILL) as file:
                await file.read(1)
    with trio.fail_after(5):
        while open_files() > before:  # noqa: ASYNC110 (of threads)
            await trio.sleep(0.01)
