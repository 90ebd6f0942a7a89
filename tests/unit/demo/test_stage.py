"""How the demo sets the stage."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from relay.demo import stage
from relay.demo.display import DemoConsole


async def test_an_address_that_was_asked_for_is_taken_as_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert await stage.choose_bind("127.0.0.1:1", DemoConsole()) == "127.0.0.1:1"
    assert capsys.readouterr().out == ""


async def test_a_free_default_port_is_used_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage, "DEFAULT_BIND", "127.0.0.1:0")
    assert await stage.choose_bind(None, DemoConsole()) == "127.0.0.1:0"
    assert capsys.readouterr().out == ""


async def test_instead_of_a_taken_default_port_a_free_one_is_used_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr(stage, "DEFAULT_BIND", where)
        assert await stage.choose_bind(None, DemoConsole()) == "localhost:0"
    assert capsys.readouterr().out == f"{where} is not free; using another port.\n"


def test_the_data_folder_is_open_to_pass_through_and_goes_away() -> None:
    with stage.open_data_folder(None) as folder:
        folder.mkdir()
        parent = folder.parent
        assert parent.stat().st_mode & 0o777 == 0o711
    assert not parent.exists()


def test_a_data_folder_that_was_asked_for_stays(tmp_path: Path) -> None:
    with stage.open_data_folder(tmp_path) as folder:
        assert folder == tmp_path
    assert tmp_path.exists()
