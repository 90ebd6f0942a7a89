"""docs/settings.md has every setting once, with the value that it takes and its default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from relay.settings.groups import GROUPS
from relay.settings.settings import SETTINGS, placeholder

PAGE = (Path(__file__).parents[3] / "docs" / "settings.md").read_text("utf-8")
ROW = re.compile(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.+) \|$", re.MULTILINE)
ROWS = ROW.findall(PAGE)
IN_WORDS = {"data_dir", "jwt_algorithms", "push_services"}
"""Settings whose default depends on something else."""


def written(default: Any) -> set[str]:
    """How the page may write a default."""
    match default:
        case None:
            return {"not set"}
        case ():
            return {"none", "any"}
        case bool():
            return {f"`{str(default).lower()}`"}
        case float():
            return {f"`{default:g}`"}
        case _:
            return {f"`{default}`"}


def test_the_page_has_each_setting_once() -> None:
    assert sorted(name for name, *_ in ROWS) == sorted(SETTINGS)


def test_the_page_is_in_the_groups_of_the_help() -> None:
    sections = re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", PAGE, re.MULTILINE)
    written = {title: tuple(name for name, *_ in ROW.findall(text)) for title, text in sections}
    assert written == GROUPS


def test_the_page_says_what_a_setting_takes() -> None:
    for name, value, *_ in ROWS:
        assert value.replace("\\|", "|") == placeholder(name), name


def test_the_page_has_the_defaults() -> None:
    for name, _, default, _ in ROWS:
        assert name in IN_WORDS or default in written(SETTINGS[name].default), name
