"""A clock that jumps, for the modules that ask for it with `pytestmark = pytest.mark.mock_clock`.

pytest-trio's `autojump_clock` works only in the signature of each test; and this is not for tests
with threads, during which the clock would jump.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from relay.logs.setup import configure_logging
from tests.unit.memory import MemoryRelay, open_relay


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "mock_clock: time jumps when nothing else happens")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("mock_clock"):
            item.add_marker(pytest.mark.trio(run=_run_with_mock_clock), append=False)


def _run_with_mock_clock(main: Callable[..., Any], **options: Any) -> Any:
    return trio.run(main, **{**options, "clock": MockClock(autojump_threshold=0)})


@pytest.fixture(autouse=True)
def _logging() -> None:
    configure_logging()


@pytest.fixture
async def relay() -> AsyncIterator[MemoryRelay]:
    async with open_relay() as relay:
        yield relay
