"""What the generator says about itself, in words. No I/O."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from relay.load.measures.generator_usage import (
    MAX_BUSY,
    MAX_CLOCK_ERROR,
    GeneratorResult,
    OneGenerator,
)
from relay.load.measures.results import RunResult
from relay.load.units import seconds_in_words

GENERATOR_COLUMNS = (
    *("processes", "frames out", "frames in", "late p99", "busy", "GC", "dropped"),
    *("clock known to", "machine"),
)


def about_generator(generator: GeneratorResult) -> str:
    return (
        f"generator: late by {seconds_in_words(generator.lateness)} (p99), busy for up to"
        f" {generator.busiest:.0%} of a second, garbage collection up to"
        f" {seconds_in_words(generator.gc_pause)}, {generator.dropped} observations dropped"
    )


def about_machine(result: RunResult) -> str | None:
    """Whether those on the coordinator's machine had to wait for its cores; None if not."""
    if not result.full_seconds:
        return None
    return (
        f"machine: all cores of this machine were busy for {result.full_seconds} of"
        f" {result.seconds:.0f} s, also with other work: what runs on it had to wait for them"
    )


def generator_rows(generators: Mapping[str, OneGenerator]) -> Iterator[tuple[str, ...]]:
    """A row for each generator, with its name before `GENERATOR_COLUMNS`."""
    for name, each in generators.items():
        usage = each.usage
        yield (
            name,
            str(each.processes),
            *(str(number or "") for number in (each.sent, each.received)),
            seconds_in_words(usage.lateness),
            f"{usage.busiest:.0%}",
            seconds_in_words(usage.gc_pause),
            str(usage.dropped or ""),
            _clock(each),
            each.machine or "this machine",
        )


def doubt(result: RunResult) -> str | None:
    """Why figures may be those of the generator, not of the relay; None if there is no doubt."""
    parts = list(_limits(result))
    limits = [f"the generator may be what limits these figures: {'; '.join(parts)}"]
    found = [*(limits if parts else ()), *_clocks(result.generators)]
    return "; ".join(found) or None


def _limits(result: RunResult) -> Iterator[str]:
    generator, generators = result.generator, result.generators
    if generator is not None and generator.overloaded:
        has_agents = any(each.machine is not None for each in generators.values())
        help_ = "more agents or more of their --workers" if has_agents else "more --workers"
        names = _names(generators, lambda each: each.usage.overloaded > 0)
        yield (
            f"it was busy for more than {MAX_BUSY:.0%} of the time in {generator.overloaded}"
            f" seconds{names}: use {help_}, or a smaller load"
        )
    if generator is not None and generator.dropped:
        names = _names(generators, lambda each: each.usage.dropped > 0)
        yield f"it dropped {generator.dropped} observations{names}, so checks may miss something"


def _clocks(generators: Mapping[str, OneGenerator]) -> Iterator[str]:
    errors = [each.clock_error for each in generators.values() if each.clock_error is not None]
    if errors and max(errors) > MAX_CLOCK_ERROR:
        names = _names(generators, lambda each: (each.clock_error or 0.0) > MAX_CLOCK_ERROR)
        worst = _error_in_words(max(errors))
        yield f"clocks are known to {worst} only{names}, and ages between machines no better"


def _names(generators: Mapping[str, OneGenerator], is_meant: Callable[[OneGenerator], bool]) -> str:
    names = [name for name, each in generators.items() if is_meant(each)]
    return f" ({', '.join(names)})" if names else ""


def _clock(each: OneGenerator) -> str:
    return "" if each.clock_error is None else _error_in_words(each.clock_error)


def _error_in_words(error: float) -> str:
    return f"\u00b1{seconds_in_words(error)}" if math.isfinite(error) else "nothing"
