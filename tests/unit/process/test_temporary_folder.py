"""Folders for a while, also where there is no room for them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from relay.cli.main import main
from relay.errors import ConfigError
from relay.process.temporary_folder import open_temporary_folder


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))


def test_a_folder_is_there_for_as_long_as_it_is_used() -> None:
    with open_temporary_folder("relay-test-") as folder:
        assert folder.stat().st_mode & 0o777 == 0o711
    assert not folder.exists()


@pytest.mark.usefixtures("nowhere")
def test_without_a_place_for_it_the_error_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match="TMPDIR"), open_temporary_folder("relay-test-"):
        pass


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("command", [["demo", "--seconds", "1"], ["load", "smoke"]])
def test_commands_say_so(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME")
    assert main(command) != 0
    out, err = capsys.readouterr()
    said = " ".join((out + err).split())
    assert "cannot make a temporary folder (No such file or directory): set TMPDIR" in said
    assert "Traceback" not in said
