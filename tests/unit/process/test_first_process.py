"""SIGTERM ends the first process of a container before anything handles it."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from relay.process.first_process import EXIT_TERMINATED, end_on_sigterm_if_first


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def be_process(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Have this id; returns the codes with which the process would have ended."""
    codes: list[int] = []
    monkeypatch.setattr("relay.process.first_process.os.getpid", lambda: number)
    monkeypatch.setattr("relay.process.first_process.os._exit", codes.append)
    return codes


def test_sigterm_ends_the_first_process(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = be_process(monkeypatch, 1)
    end_on_sigterm_if_first()
    signal.raise_signal(signal.SIGTERM)
    assert codes == [EXIT_TERMINATED] == [143]


def test_any_other_process_ends_as_the_system_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    be_process(monkeypatch, 4711)
    end_on_sigterm_if_first()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_handles_or_ignores_sigterm_already_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    be_process(monkeypatch, 1)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_on_sigterm_if_first()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
