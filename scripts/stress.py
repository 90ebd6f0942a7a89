"""Lets hundreds of random clients loose on a real relay, and checks every frame that they get.

    ./scripts/test --collect-only -q >/dev/null && .venv/bin/python scripts/stress.py

Phones send frames of all sizes; viewers are fast, slow, stalling, read a byte at a time, ping,
subscribe again, break off in the middle of a frame. It fails when a frame is damaged, doubled, out
of order, of another stream or missing where none may be, when something follows a Close, when a
client is kept waiting, when the ledger in /stats is out or anything is left behind, when the relay
logs a traceback, or when its memory grows. All traffic stays on loopback.
"""

from __future__ import annotations

import argparse
import resource
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.integration.relay_process import RelayProcess, run_relay, start_relay
from tests.integration.stress import watched_relay
from tests.integration.stress.client import Plan
from tests.integration.stress.frame_checks import Failed
from tests.integration.stress.play import run_round

MIB = 1 << 20
WARM = 3
"""Rounds after which the memory is no longer expected to grow."""
GROWTH = 32 * MIB


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--clients", type=int, default=200, help="in a round, default: %(default)s")
    parser.add_argument("--seconds", type=float, default=5.0, help="that a round sends frames")
    parser.add_argument("--seed", default=secrets.token_hex(4), help="repeats what clients intend")
    parser.add_argument("--tls", action="store_true", help="encrypt everything")
    parser.add_argument(
        "--no-unsent-question",
        action="store_true",
        help="as where the kernel does not tell what lies unsent",
    )
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(1024, 4 * options.clients), hard), hard))
    print(f"seed {options.seed}")
    flags = ["--dev-tls"] if options.tls else []
    failed: list[Failed] = []
    with running_relay(*flags, blind=options.no_unsent_question) as (relay, token):
        try:
            trio.run(play, relay, token, options)
        except* Failed as failures:
            failed += leaves(failures)
        code = relay.end()
        tally = relay.output.splitlines()[1]
    if not failed:
        print(f"nothing failed; the relay made {tally}, and ended with {code}")
        return code
    for failure in failed:
        print(f"FAILED: {failure}")
    again = f"--seed {options.seed} --clients {options.clients} --seconds {options.seconds:g}"
    print(f"again with: scripts/stress.py {again}")
    return 1


async def play(relay: RelayProcess, token: str, options: argparse.Namespace) -> None:
    memory: list[int] = []
    total = 0
    for number in range(1, options.rounds + 1):
        start = time.monotonic()
        plan = Plan(f"{options.seed}:{number}", options.clients, options.seconds, number % 2 == 0)
        outcome = await run_round(relay, token, plan)
        memory.append(relay.memory)
        total += outcome.seen
        kind = "rough" if plan.rough else "polite"
        print(
            f"round {number} of {options.rounds}, {kind}, {time.monotonic() - start:.1f} s:"
            f" {outcome.seen:,} frames seen of {outcome.written:,} written,"
            f" {outcome.dropped:,} dropped, {outcome.too_slow} viewers too slow;"
            f" {memory[-1] / MIB:.0f} MiB",
            flush=True,
        )
    print(f"{total:,} frames were checked")
    if len(memory) > WARM and memory[-1] > max(memory[:WARM]) + GROWTH:
        raise Failed(f"the memory grew: {[f'{each / MIB:.0f} MiB' for each in memory]}")


@contextmanager
def running_relay(*flags: str, blind: bool) -> Iterator[tuple[RelayProcess, str]]:
    """A relay with a database of its own, and a token for it; both are gone at the end."""
    with tempfile.TemporaryDirectory(prefix="relay-stress-") as folder:
        Path(folder).chmod(0o711)  # as root, Postgres runs as another user and must get through
        data = ("--data-dir", str(Path(folder, "data")))
        command = [sys.executable, "-m", watched_relay.__name__]
        command += [watched_relay.BLIND] * blind + ["serve"]
        # A machine that is busy with all these clients may be slow; that is not what is tested.
        patient = ("--auth-timeout", "120", "--statement-timeout", "60")
        settings = (
            "--profile",
            "load",
            "--log-level",
            "warning",
            "--lossless-buffer",
            str(2 * MIB),
            *patient,
        )
        with start_relay(*data, *settings, *flags, command=command) as relay:
            made = run_relay("token", "session", "--user", "stress@example.com", *data)
            if made.returncode:
                raise SystemExit(made.stderr)
            yield relay, made.stdout.strip()


def leaves(group: BaseExceptionGroup[Failed]) -> Iterator[Failed]:
    for each in group.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from leaves(each)
        else:
            yield each


if __name__ == "__main__":
    sys.exit(main())
