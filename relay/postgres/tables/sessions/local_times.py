"""Notices times without a zone that are not in the zone that relay takes them for.

node-postgres writes the application's local time into a `timestamp without time zone`. Sessions
then end hours too late or too early. A session that was made just now shows it: it seems to be made
in the future, or a whole number of quarters of an hour ago.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from attrs import define

QUARTER = 900.0
"""Seconds; the offset of each time zone is a multiple of this."""
MAX_OFFSET = 14 * 3600.0
"""Seconds; no zone is farther from another one's noon."""
AHEAD = 120.0
"""Seconds in the future that no clock is wrong by."""
AGE_MARGIN = 30.0
"""Seconds within which a session was made just now."""
AGREEING_SESSIONS = 2
"""New sessions that must seem as old as each other."""
NEWEST_SESSIONS = 20
"""Sessions that `offset_of_newest` is asked about."""
MIN_SESSIONS_FOR_GAP = 5
"""Sessions from which the usual time between two can be told."""
UNUSUAL_GAPS = 3.0
"""Times the usual time between two sessions, after which it is odd that there was none."""

log = structlog.get_logger()


def offset_of(age: float) -> float | None:
    """The seconds by which the times seem to be wrong, from the age of a session that may be new:
    positive when they are ahead of us. None when they seem to be right."""
    if age < -MAX_OFFSET - QUARTER:  # such as an infinite time
        return None
    if age < -AHEAD:
        return round(-age / QUARTER) * QUARTER or QUARTER
    nearest = round(age / QUARTER) * QUARTER
    if QUARTER <= nearest <= MAX_OFFSET and abs(age - nearest) <= AGE_MARGIN:
        return -nearest
    return None


def offset_of_newest(ages: Sequence[float]) -> float | None:
    """`offset_of` the newest session, from the ages of the newest ones, the newest first. Where
    there is often none for so long, it is a session that was made so long ago."""
    offset = offset_of(ages[0]) if ages else None
    if offset is not None and offset < 0 and len(ages) >= MIN_SESSIONS_FOR_GAP:
        gap = (ages[-1] - ages[0]) / (len(ages) - 1)
        if ages[0] < UNUSUAL_GAPS * gap:
            return None
    return offset


def hours(offset: float) -> str:
    """An offset as people say it, such as "+2:00 h"."""
    minutes = round(abs(offset) / 60)
    return f"{'+' if offset > 0 else '-'}{minutes // 60}:{minutes % 60:02} h"


@define(eq=False, repr=False)
class LocalTimes:
    """Looks at sessions as they are verified, and warns once."""

    _time_zone: str
    _newest: float = float("-inf")
    """When the newest session was made, as a Unix time."""
    _offset: float | None = None
    """What the newest sessions suggest."""
    _agreeing: int = 0
    _warned: bool = False

    def note(self, created: float | None, age: float | None) -> None:
        """A session was found that was made at this time, so many seconds ago."""
        if created is None or age is None or created <= self._newest:
            return
        if age < -MAX_OFFSET - QUARTER:  # it would stay the newest
            return
        self._newest = created
        offset = offset_of(age)
        self._agreeing = self._agreeing + 1 if offset == self._offset else 1
        self._offset = offset
        if offset is None or self._warned:
            return
        if offset > 0 or self._agreeing >= AGREEING_SESSIONS:
            self._warned = True
            log.warning(
                "sessions seem to be made at the wrong time: set auth_time_zone to the time zone of"
                " the application that writes them",
                auth_time_zone=self._time_zone,
                off_by=hours(offset),
            )
