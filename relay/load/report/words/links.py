"""Links in words: how fast they are, and how much of the time nothing passes. No I/O but reading
the named ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from textwrap import wrap

from attrs import frozen

from relay.load.scenario.link_trace import LinkStep, LinkTrace, link_names, read_named_link
from relay.load.units import seconds_in_words

LINE_WIDTH = 96


@frozen
class RateSummary:
    """One direction of a link over time."""

    mean: float | None
    """Bits per second; None without a limit."""
    holes: float
    """Part of the time."""

    def in_words(self) -> str:
        if self.mean is None:
            return "no limit"
        words = f"{self.mean / 1e6:.3g} Mbit/s"
        return f"{words} (holes {self.holes:.0%} of the time)" if self.holes else words


def summarize(trace: LinkTrace, rate: Callable[[LinkStep], float | None]) -> RateSummary:
    bits, empty, starts = 0.0, 0.0, [step.at for step in trace.steps]
    for step, end in zip(trace.steps, [*starts[1:], trace.head.length], strict=True):
        carried = rate(step)
        if carried is None:
            return RateSummary(None, 0.0)
        bits += carried * (end - step.at)
        empty += (end - step.at) * (carried == 0)
    return RateSummary(bits / trace.head.length, empty / trace.head.length)


def link_in_words(trace: LinkTrace) -> str:
    """Rates and round trip, in one line."""
    down, up = summarize(trace, lambda step: step.down), summarize(trace, lambda step: step.up)
    trips = sorted({each.round_trip for each in trace.steps if each.round_trip is not None})
    words = f"down {down.in_words()}, up {up.in_words()}"
    if trips:
        most = "" if trips[0] == trips[-1] else f" to {seconds_in_words(trips[-1])}"
        words += f", round trip {seconds_in_words(trips[0])}{most}"
    changes = len(trace.steps) > 1
    return f"{words}, {seconds_in_words(trace.head.length)} long" if changes else words


def link_lines() -> Iterator[str]:
    """All named links, each with where its numbers come from."""
    for name in link_names():
        trace = read_named_link(name)
        yield f"{name:12} {link_in_words(trace)}"
        for line in wrap(trace.head.source, LINE_WIDTH):
            yield f"    {line}"


def recorded_lines(trace: LinkTrace, doubts: Iterable[str]) -> Iterator[str]:
    """What was recorded, and what of it is not sure."""
    yield f"{trace.name}: {link_in_words(trace)}"
    for words in doubts:
        yield f"MARK {words}"
