"""What the generator says about itself, in words. No I/O."""

from __future__ import annotations

from relay.load.measures.generator_usage import MAX_BUSY, GeneratorResult
from relay.load.units import seconds_in_words


def about_generator(generator: GeneratorResult) -> str:
    return (
        f"generator: late by {seconds_in_words(generator.lateness)} (p99), busy for up to"
        f" {generator.busiest:.0%} of a second, garbage collection up to"
        f" {seconds_in_words(generator.gc_pause)}, {generator.dropped} observations dropped"
    )


def doubt(generator: GeneratorResult | None) -> str | None:
    """Why figures may be those of the generator, not of the relay; None if there is no doubt."""
    if generator is None or not generator.is_doubtful:
        return None
    parts = []
    if generator.overloaded:
        parts.append(
            f"it was busy for more than {MAX_BUSY:.0%} of the time in {generator.overloaded}"
            " seconds: use more --workers, or a smaller load"
        )
    if generator.dropped:
        parts.append(f"it dropped {generator.dropped} observations, so checks may miss something")
    return f"the generator may be what limits these figures: {'; '.join(parts)}"
