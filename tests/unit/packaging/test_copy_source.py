"""Packages are built from what git tracks, and not from what else lies about in a clone."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path("scripts", "packaging", "copy-source")
PROJECT = Path(__file__).parents[3]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Files as those of the project, and the script."""
    folder = tmp_path / "a project"
    for name, text in {
        "pyproject.toml": "",
        "relay/page.js": "as committed",
        "relay/gone.js": "",
        "docs/[...all]/é.ts": "",
        ".gitignore": ".env\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / SCRIPT).parent.mkdir(parents=True)
    shutil.copy(PROJECT / SCRIPT, folder / SCRIPT)
    return folder


def commit_all(project: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("there is no git: apt-get install git")
    who = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org"]
    for words in (["init", "--quiet"], ["add", "."], [*who, "commit", "--quiet", "-m", "All"]):
        subprocess.run(["git", *words], cwd=project, check=True)


def copy(project: Path, tmp_path: Path) -> tuple[dict[str, str], str]:
    """What is copied, and what is said."""
    folder = tmp_path / "copy"
    folder.mkdir()
    done = subprocess.run(
        [project / SCRIPT, folder], cwd="/", check=True, capture_output=True, text=True
    )
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(each.relative_to(folder)): each.read_text() for each in files}, done.stderr


def test_what_git_does_not_track_is_left_out_and_told(project: Path, tmp_path: Path) -> None:
    commit_all(project)
    (project / "relay/page.js").write_text("as it is now")
    (project / "relay/gone.js").unlink()
    (project / "docs/.env").write_text("SECRET=1")
    (project / "relay/notes.txt").write_text("mine")
    copied, said = copy(project, tmp_path)
    assert sorted(copied) == [
        ".gitignore",
        "docs/[...all]/é.ts",
        "pyproject.toml",
        "relay/page.js",
        str(SCRIPT),
    ]
    assert copied["relay/page.js"] == "as it is now"
    assert "    relay/notes.txt\n" in said
    assert ".env" not in said  # it is ignored on purpose
    assert "changes that are in no commit" in said


def test_nothing_is_said_of_a_commit(project: Path, tmp_path: Path) -> None:
    commit_all(project)
    assert copy(project, tmp_path)[1] == ""


def test_of_a_source_archive_all_is_copied(project: Path, tmp_path: Path) -> None:
    (project / ".venv-package").mkdir()
    (project / ".venv-package" / "python").touch()
    copied, said = copy(project, tmp_path)
    assert {"pyproject.toml", "relay/gone.js", str(SCRIPT)} <= copied.keys()
    assert ".venv-package/python" not in copied
    assert said == ""
