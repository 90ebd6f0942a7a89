"""One Chromium for all tests of the page; each test opens pages of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.integration.browser import run_chromium


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with (
        tempfile.TemporaryDirectory(prefix="relay-test-") as folder,
        run_chromium(Path(folder)) as browser,
    ):
        yield browser
