"""What the pages point to is there: other pages, their headings, and files of the project."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[3]
PAGES = [PROJECT / "README.md", PROJECT / "CHANGELOG.md", *sorted((PROJECT / "docs").glob("*.md"))]
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+)\)")
PATH = re.compile(r"`((?:[A-Za-z.][\w.-]*/)+[\w.-]*)`")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
TOPICS = {
    *(f"relay/STREAM/{what}" for what in ("alert", "state", "picture")),
    *("relay/status", "home/relay"),
}
"""Of MQTT: they look like paths."""
ELSEWHERE = {*TOPICS, "bench-results/figures.json", "dist/"}
"""Paths that are made by a command."""


def prose(page: Path) -> str:
    return CODE.sub("", page.read_text("utf-8"))


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to headings."""
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(prose(page)))
    return {each.replace(" ", "-") for each in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_pages_and_headings(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_are_those_of_files(page: Path) -> None:
    for path in PATH.findall(prose(page)):
        places = (PROJECT / path, PROJECT / "relay" / path)
        assert path in ELSEWHERE or any(place.exists() for place in places), path
