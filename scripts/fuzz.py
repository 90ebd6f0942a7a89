"""Hands the relay's connection code hostile input, over memory links and with a clock that jumps.

    ./scripts/test --collect-only -q >/dev/null && .venv/bin/python scripts/fuzz.py

An input is one message, one run of raw bytes, or one request head. Phones, viewers and services
send them, before and after they authenticate, in both encodings, whole, cut and damaged, while they
read, stall or leave. It fails when a bug ends a connection, a reply cannot be read, a connection
does not end, a token is logged, the ledger is out, or anything is left behind or grows.
"""

from __future__ import annotations

import argparse
import faulthandler
import secrets
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import trio
from trio.testing import MockClock

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.unit.fuzzing import Failed, objects, run_round, same_turns

ROUND_SECONDS = 60
"""By the wall clock; a round takes about one."""
GROWTH = 500
"""Objects that may be there at the end and were not after a tenth of the rounds."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--seed", default=secrets.token_hex(4), help="repeats a run")
    parser.add_argument("--round", type=int, default=0, help="to begin with (default: the first)")
    options = parser.parse_args()
    start, inputs, before = time.monotonic(), 0, None
    for number in count(options.round):
        seconds = time.monotonic() - start
        if inputs >= options.inputs or seconds >= options.seconds:
            break
        if before is None and (inputs >= options.inputs / 10 or seconds >= options.seconds / 10):
            before = objects()
        seed = f"{options.seed}/{number}"
        faulthandler.dump_traceback_later(ROUND_SECONDS, exit=True)
        outcome = play(seed)
        if isinstance(outcome, Failed):
            again = f"--seed {options.seed} --round {number} --inputs 1"
            print(f"\n{outcome}\nFAILED; again with: scripts/fuzz.py {again}")
            return 1
        inputs += outcome
        if sys.stderr.isatty():
            print(
                f"\r{inputs:,} inputs, {inputs / (time.monotonic() - start):,.0f} a second",
                end="",
                file=sys.stderr,
                flush=True,
            )
    faulthandler.cancel_dump_traceback_later()
    seconds = time.monotonic() - start
    growth = objects() - before if before else 0
    print(
        f"\n{inputs:,} inputs in {seconds:.0f} s, {inputs / seconds:,.0f} a second, seed"
        f" {options.seed}: nothing failed; objects grown by {growth}"
    )
    return int(growth > GROWTH)


def play(seed: str) -> int | Failed:
    """Play a round; returns its number of inputs, or what failed."""
    failures: list[Failed] = []
    inputs = 0
    try:
        with same_turns(seed):
            inputs = trio.run(run_round, seed, clock=MockClock(autojump_threshold=0))
    except* Failed as group:
        failures += leaves(group)
    return failures[0] if failures else inputs


def leaves(group: BaseExceptionGroup[Failed]) -> Iterator[Failed]:
    for each in group.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from leaves(each)
        else:
            yield each


if __name__ == "__main__":
    sys.exit(main())
