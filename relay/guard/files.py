"""How many files this process may have open, of which each connection is one. Floor 2."""

from __future__ import annotations

import resource
from contextlib import suppress

import structlog

SPARE = 200
"""Files for everything that is no connection."""

log = structlog.get_logger()


def allow_files(connections: int) -> None:
    """Raise the soft limit to what so many connections need, or say that it cannot be."""
    wanted = connections + SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _is_enough(soft, wanted):
        return
    raised = wanted if _is_enough(hard, wanted) else hard
    with suppress(ValueError, OSError):  # macOS has a lower limit that it does not tell
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = raised
    if not _is_enough(soft, wanted):
        log.warning("fewer files allowed than connections", files=soft, wanted=wanted)


def _is_enough(files: int, wanted: int) -> bool:
    return files == resource.RLIM_INFINITY or files >= wanted
