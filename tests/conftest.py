"""What every test runs under: no settings from outside, no deadlines on a busy machine, and with
--no-skips no skipped tests but those of another platform. Tests marked `slow` need --all, with
which Hypothesis also tries four times as many examples.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Generator

import hypothesis
import pytest

PLATFORM = "platform:"

pytest_plugins = ["pytester"]

hypothesis.settings.register_profile("all", deadline=None, max_examples=100)
hypothesis.settings.register_profile("share", deadline=None, max_examples=25)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-skips",
        action="store_true",
        help=f"fail where a test is skipped, unless its reason begins with '{PLATFORM}'",
    )
    parser.addoption("--all", action="store_true", help="run the tests that are marked slow, too")


def pytest_configure(config: pytest.Config) -> None:
    """A developer's own RELAY_* variables are not part of any test."""
    config.addinivalue_line("markers", "slow: takes long, and is left out unless --all is given")
    hypothesis.settings.load_profile("all" if config.getoption("all") else "share")
    for name in [name for name in os.environ if name.startswith("RELAY_")]:
        del os.environ[name]
    # Hundreds of relays are started: none has to compile itself anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("all"):
        slow = [item for item in items if item.get_closest_marker("slow") is not None]
        items[:] = [item for item in items if item not in slow]
        config.hook.pytest_deselected(items=slow)


def pytest_collection_finish() -> None:
    """Keep the collected tests, which live to the end, out of each collection of garbage."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say what is left out: pytest itself does not where several processes run the tests."""
    if not config.getoption("all"):
        terminalreporter.write_line("tests marked slow were left out: ./scripts/test all")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not hasattr(report, "wasxfail"):
        _refuse_skip(item.config, report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(collector.config, report)
    return report


def _refuse_skip(config: pytest.Config, report: pytest.TestReport | pytest.CollectReport) -> None:
    """Where a skip would hide that something is not tested, make it a failure."""
    if not (report.skipped and config.getoption("no_skips")):
        return
    where_and_why = report.longrepr
    why = where_and_why[2] if isinstance(where_and_why, tuple) else str(where_and_why)
    why = why.removeprefix("Skipped: ")
    if not why.startswith(PLATFORM):
        report.outcome = "failed"
        report.longrepr = f"skipped, which --no-skips allows only for '{PLATFORM}' reasons: {why}"
