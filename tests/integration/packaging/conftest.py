"""The packages as scripts/packaging/build makes them: once, for all processes of a run."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.integration.relay_process import PROJECT

BUILD = PROJECT / "scripts" / "packaging" / "build"


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the wheel and the source archive, and the npm package if there is npm."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder, done = shared / "packages", shared / "packages.done"
    with (shared / "packages.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            what = ["python", *(["npm"] if shutil.which("npm") else [])]
            subprocess.run([BUILD, "--to", folder, *what], check=True, cwd="/")
            done.touch()
    return folder


@pytest.fixture(scope="session")
def wheel(packages: Path) -> Path:
    (found,) = packages.glob("*.whl")
    return found
