"""Runs checks side by side, each with a deadline of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from enum import StrEnum

import trio
from attrs import frozen

from relay.errors import RelayError, StoreUnavailable

CHECK_TIMEOUT = 10.0
"""Seconds for each check."""


class Outcome(StrEnum):
    """The result of a check."""

    OK = "ok"
    WARN = "warn"
    """relay works, and something should be fixed."""
    FAIL = "fail"
    """relay does not start, or fails soon or for some clients."""
    SKIP = "skip"
    """The check was not made, for a reason that another check reports."""


@frozen
class Finding:
    """What a check found (`said`), and how to fix it (`do`)."""

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
class DoctorCheck:
    """One thing that doctor looks at."""

    name: str
    look: Callable[[], Awaitable[Finding]]
    """A `RelayError` or `OSError` that it raises becomes a failure with that message."""
    settings: tuple[str, ...]
    """The settings it depends on; if one of them is wrong, the check is skipped."""
    fix: str = "see the message"
    """What to do if it raises an error or gets no answer."""


@frozen
class Examined:
    """A check with its finding."""

    name: str
    finding: Finding


async def examine(
    checks: Sequence[DoctorCheck], wrong: Collection[str], report: Callable[[Examined], None]
) -> None:
    """Run all checks at once, and report each finding in the order of `checks`.

    `wrong` has the names of settings without a valid value. A check that hangs delays the report,
    but not the other checks.
    """
    findings: dict[str, Finding] = {}
    done = {check.name: trio.Event() for check in checks}

    async def one(check: DoctorCheck) -> None:
        findings[check.name] = await _look(check, wrong)
        done[check.name].set()

    async with trio.open_nursery() as nursery:
        for check in checks:
            nursery.start_soon(one, check)
        for check in checks:
            await done[check.name].wait()
            report(Examined(check.name, findings[check.name]))


async def _look(check: DoctorCheck, wrong: Collection[str]) -> Finding:
    if unknown := [name for name in check.settings if name in wrong]:
        return skip(f"not checked: {', '.join(unknown)} is invalid")
    try:
        with trio.fail_after(CHECK_TIMEOUT):
            return await check.look()
    except trio.TooSlowError:
        return fail(f"no answer within {CHECK_TIMEOUT:g} s", check.fix)
    except StoreUnavailable as error:
        return fail(f"the database is unavailable: {error}", check.fix)
    except RelayError as error:
        return fail(str(error), check.fix)
    except OSError as error:
        return fail(error.strerror or type(error).__name__, check.fix)
