"""Checks that are made all at once, each under a deadline of its own. Floor 6."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from enum import StrEnum

import trio
from attrs import frozen

from relay.errors import RelayError, StoreUnavailable

PATIENCE = 10.0
"""Seconds for each check."""


class Outcome(StrEnum):
    """What came of a check."""

    OK = "ok"
    WARN = "warn"
    """relay works, and there is something to know."""
    FAIL = "fail"
    """relay does not start, or not for long, or not for everybody."""
    SKIP = "skip"
    """It could not be looked at, for a reason that another check tells."""


@frozen
class Finding:
    """What a check found, and what to do."""

    outcome: Outcome
    said: str
    do: str = ""


def ok(said: str) -> Finding:
    return Finding(Outcome.OK, said)


def warn(said: str, do: str) -> Finding:
    return Finding(Outcome.WARN, said, do)


def fail(said: str, do: str) -> Finding:
    return Finding(Outcome.FAIL, said, do)


def skip(said: str) -> Finding:
    return Finding(Outcome.SKIP, said)


@frozen
class Check:
    """One thing that is looked at."""

    name: str
    look: Callable[[], Awaitable[Finding]]
    """`RelayError` and `OSError` are findings, too: that it failed, and why."""
    settings: tuple[str, ...]
    """Where one of these is wrong there is nothing to look at."""
    if_not: str = "see what it says"
    """What to do when it fails with an error."""


@frozen
class Examined:
    """A check with what came of it."""

    name: str
    finding: Finding


async def examine(
    checks: Sequence[Check], wrong: Collection[str], tell: Callable[[Examined], None]
) -> None:
    """Make all checks at once, and tell of each in the order in which they stand.

    `wrong` are the settings that have no value to go by. A check that hangs holds up no other.
    """
    findings: dict[str, Finding] = {}
    done = {check.name: trio.Event() for check in checks}

    async def one(check: Check) -> None:
        findings[check.name] = await _look(check, wrong)
        done[check.name].set()

    async with trio.open_nursery() as nursery:
        for check in checks:
            nursery.start_soon(one, check)
        for check in checks:
            await done[check.name].wait()
            tell(Examined(check.name, findings[check.name]))


async def _look(check: Check, wrong: Collection[str]) -> Finding:
    if unknown := [name for name in check.settings if name in wrong]:
        return skip(f"not looked at: {', '.join(unknown)} is wrong")
    try:
        with trio.fail_after(PATIENCE):
            return await check.look()
    except trio.TooSlowError:
        return fail(f"no answer within {PATIENCE:g} s", check.if_not)
    except StoreUnavailable as error:
        return fail(f"the database cannot be asked: {error}", check.if_not)
    except RelayError as error:
        return fail(str(error), check.if_not)
    except OSError as error:
        return fail(error.strerror or type(error).__name__, check.if_not)
