"""What every test runs under: no settings from outside, no deadlines on a busy machine, and with
--no-skips no skipped tests but those of another platform. Tests marked `slow` need --all, with
which Hypothesis also tries four times as many examples.
"""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import pytest

PLATFORM = "platform:"
LEFT_OUT = pytest.StashKey[int]()
"""How many tests marked `slow` are not run."""
SHARED_MEMORY = Path("/dev/shm")
ENOUGH_MEMORY = 2 << 30
"""Bytes that are free where temporary files are kept in memory."""

INTEGRATION = Path(__file__).parent / "integration"
"""The folder of tests that wait for other processes."""
T = TypeVar("T")

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
    gc.disable()  # until all tests are collected: they stay
    for name in [name for name in os.environ if name.startswith("RELAY_")]:
        del os.environ[name]
    # Hundreds of relays are started: none has to compile itself anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if keeps_files(SHARED_MEMORY):
        # The hundreds of databases that tests make are several times cheaper there than on a disk.
        os.environ.setdefault("TMPDIR", str(SHARED_MEMORY))
        tempfile.tempdir = None  # pytest has asked already


def keeps_files(folder: Path) -> bool:
    """Whether there is a folder for temporary files with room for those of all tests."""
    try:
        found = os.statvfs(folder)
        sticky = folder.stat().st_mode & 0o1777 == 0o1777
    except OSError:
        return False
    programs = not found.f_flag & getattr(os, "ST_NOEXEC", 0)  # as containers often have it
    return sticky and programs and shutil.disk_usage(folder).free >= ENOUGH_MEMORY


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("all"):
        slow = [item for item in items if item.get_closest_marker("slow") is not None]
        items[:] = [item for item in items if item.get_closest_marker("slow") is None]
        config.hook.pytest_deselected(items=slow)
        config.stash[LEFT_OUT] = len(slow)
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    if workers > 1:
        waiting = [item for item in items if INTEGRATION in item.path.parents]
        modules = [list(tests) for _, tests in itertools.groupby(waiting, lambda item: item.path)]
        others = [item for item in items if INTEGRATION not in item.path.parents]
        items[:] = deal_out(modules, others, workers)


def deal_out(modules: Sequence[Sequence[T]], others: Sequence[T], workers: int) -> list[T]:
    """The order of tests, of which each worker gets an equal part, in which all workers begin with
    these modules and end with the others.

    The modules wait for much of their time, and have the tests that take longest: on few workers
    at the end, they would leave the processor idle. Each worker begins at another place among
    them, so that those of one folder, which start many processes, seldom run at once.
    """
    order: list[T] = []
    rest = list(others)
    total = sum(map(len, modules)) + len(rest)
    for number in range(workers):
        # As `--dist worksteal` cuts it.
        size = (total - len(order)) // (workers - number)
        share = modules[number::workers]
        first = len(share) * number // workers
        mine = list(itertools.chain.from_iterable([*share[first:], *share[:first]]))
        room = max(0, size - len(mine))
        order += [*mine, *rest[:room]]
        del rest[:room]
    return [*order, *rest]


def pytest_collection_finish() -> None:
    """Keep the collected tests, which live to the end, out of each collection of garbage.

    With what little garbage there is: to find it takes half a second in each process of the run.
    """
    gc.freeze()
    gc.enable()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the process that reports, where this is one of several that run the tests."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["left_out"] = session.config.stash.get(LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Each of the processes that run the tests has collected them all."""
    output = getattr(node, "workeroutput", None) or {}  # one that has crashed has none
    node.config.stash[LEFT_OUT] = output.get("left_out", node.config.stash.get(LEFT_OUT, 0))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say what is left out: pytest itself does not where several processes run the tests."""
    count = config.stash.get(LEFT_OUT, 0)
    if count:
        terminalreporter.write_line(f"slow tests left out: {count}; ./scripts/test all runs them")


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
