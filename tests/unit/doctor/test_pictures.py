"""Doctor says whether the pictures of alerts can be kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from relay.doctor.checks import Finding, Outcome
from relay.doctor.pictures import PictureChecks
from relay.settings.settings import Settings


def folder_is_empty(folder: Path) -> bool:
    return not any(folder.iterdir())


async def look(settings: Settings) -> Finding:
    (check,) = PictureChecks(settings).checks()
    return await check.look()


def test_nothing_is_looked_at_where_nothing_is_kept() -> None:
    assert PictureChecks(Settings(alert_stills="off")).checks() == []


@pytest.mark.parametrize(("free", "outcome"), [(2 << 30, Outcome.OK), (500 << 20, Outcome.WARN)])
async def test_there_has_to_be_room(
    free: int, outcome: Outcome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    found = await look(Settings(picture_dir=tmp_path / "not" / "there"))
    assert found.outcome is outcome
    assert folder_is_empty(tmp_path)


@pytest.mark.parametrize(
    ("settings", "outcome"),
    [
        ({}, Outcome.WARN),
        ({"alert_stills": "all"}, Outcome.FAIL),
        ({"clip_streams": ("*",)}, Outcome.FAIL),
    ],
)
async def test_the_folder_has_to_be_writable(
    settings: dict[str, object], outcome: Outcome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("os.access", lambda _, mode: mode == 0)
    found = await look(Settings(picture_dir=tmp_path, **settings))  # type: ignore[arg-type]
    assert found.outcome is outcome
    assert "picture_dir" in found.do


async def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert (await look(Settings(picture_dir=tmp_path / "link"))).outcome is Outcome.FAIL
