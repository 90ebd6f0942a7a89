"""What every test runs under: no settings from outside, no deadlines on a busy machine, and, where
RELAY_NO_SKIPS is set, no skipped tests but those of another platform.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import hypothesis
import pytest

NO_SKIPS = "RELAY_NO_SKIPS"
PLATFORM = "platform:"

pytest_plugins = ["pytester"]

hypothesis.settings.register_profile("relay", deadline=None)
hypothesis.settings.load_profile("relay")


def pytest_configure() -> None:
    """A developer's own RELAY_* variables are not part of any test."""
    for name in [name for name in os.environ if name.startswith("RELAY_") and name != NO_SKIPS]:
        del os.environ[name]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not hasattr(report, "wasxfail"):
        _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Where a skip would hide that something is not tested, make it a failure."""
    if not (os.environ.get(NO_SKIPS) and report.skipped):
        return
    where_and_why = report.longrepr
    why = where_and_why[2] if isinstance(where_and_why, tuple) else str(where_and_why)
    why = why.removeprefix("Skipped: ")
    if not why.startswith(PLATFORM):
        report.outcome = "failed"
        report.longrepr = f"skipped ({why}), but {NO_SKIPS} allows only reasons with '{PLATFORM}'"
