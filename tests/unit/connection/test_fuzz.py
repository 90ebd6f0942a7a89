"""A short slice of `scripts/fuzz.py`; a failure names the seed that repeats it."""

from __future__ import annotations

import secrets

import pytest
import trio
from trio.testing import MockClock

from tests.unit.fuzzing import Failed, Listener, run_round, same_turns


@pytest.mark.parametrize("seed", ["first", "second", None])
def test_hostile_input_ends_only_its_own_connection(seed: str | None) -> None:
    seed = seed or secrets.token_hex(4)
    try:
        with same_turns(f"{seed}/0"):
            inputs = trio.run(run_round, f"{seed}/0", clock=MockClock(autojump_threshold=0))
    except BaseExceptionGroup as failure:
        failure.add_note(f"again with: scripts/fuzz.py --seed {seed} --inputs 1")
        raise
    assert inputs > 1000


@pytest.mark.parametrize(
    "sent",
    [
        b"\x81\x01{",
        b"\x81\x02{}",
        b"\x82\x01\x80",
        b"\x81\x81aaaaa",
        b"\x88\x00\x81\x00",
        b"\x83\x00",
    ],
)
def test_the_fuzzer_notices_what_no_server_may_send(sent: bytes) -> None:
    listener = Listener(binary=False)
    listener.receive(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
    with pytest.raises(Failed):
        listener.receive(sent)
