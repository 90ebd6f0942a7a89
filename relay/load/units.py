"""Durations, sizes and rates as people write them.

Each reader returns a number in the base unit or raises `ValueError` without a text: the caller
knows what was expected.
"""

from __future__ import annotations

import math
import re

_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
TIME_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
_SIZE_UNITS = {"B": 1, "KB": 1000, "KiB": 1024, "MB": 1000**2, "MiB": 1024**2}
_BANDWIDTH_UNITS = {"bit/s": 1, "kbit/s": 1e3, "Mbit/s": 1e6, "Gbit/s": 1e9}
_RATE_UNITS = {"/s": 1.0, "/min": 1 / 60, "/h": 1 / 3600}
MIB = 1 << 20
MAX_DURATION = 366 * 86400.0
"""Seconds; anything longer is taken for a typing error."""
MAX_SIZE_BYTES = 1 << 30
"""Likewise."""
MAX_PAYLOAD_BYTES = 12 * MIB
"""Of one frame: with base64 it is as much as a relay takes in one message."""


def duration(value: object) -> float:
    """Seconds."""
    return _up_to(MAX_DURATION, _read(value, TIME_UNITS))


def positive_duration(value: object) -> float:
    return _above_zero(duration(value))


def size(value: object) -> int:
    """Bytes; a bare whole number is bytes already."""
    if isinstance(value, int) and not isinstance(value, bool):
        return int(_above_zero(_up_to(MAX_SIZE_BYTES, value)))
    return int(_above_zero(_up_to(MAX_SIZE_BYTES, _read(value, _SIZE_UNITS))))


def payload_size(value: object) -> int:
    """Bytes of a frame."""
    return int(_up_to(MAX_PAYLOAD_BYTES, size(value)))


def bandwidth(value: object) -> float:
    """Bits per second; may be 0."""
    return _read(value, _BANDWIDTH_UNITS)


def rate(value: object) -> float:
    """Times per second."""
    return _above_zero(_read(value, _RATE_UNITS))


def number(value: object) -> float:
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # a whole number may be longer than a float
        pass
    raise ValueError


def above_zero(value: object) -> float:
    return _above_zero(number(value))


def seconds_in_words(seconds: float) -> str:
    """`1.5 s`, `20.3 ms`: three digits, in a suitable unit."""
    if seconds == 0:
        return "0"
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:.0f} s"


def _read(value: object, units: dict[str, float] | dict[str, int]) -> float:
    words = "|".join(map(re.escape, units))
    found = (
        re.fullmatch(rf"{_NUMBER}\s*({words})", value.strip()) if isinstance(value, str) else None
    )
    if found is None:
        raise ValueError
    value = float(found[1]) * units[found[2]]
    if not math.isfinite(value):
        raise ValueError
    return value


def _up_to(most: float, value: float) -> float:
    if value > most:
        raise ValueError
    return value


def _above_zero(value: float) -> float:
    if value <= 0:
        raise ValueError
    return value
