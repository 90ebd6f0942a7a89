"""The limit on open files. Each connection is one."""

from __future__ import annotations

import resource
from contextlib import suppress

import structlog

SPARE_FILES = 200
"""Files for everything but connections."""

log = structlog.get_logger()


def raise_open_file_limit(connections: int) -> None:
    """Raise the soft limit to what this many connections need; log a warning if that fails."""
    wanted = connections + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _is_enough(soft, wanted):
        return
    raised = wanted if _is_enough(hard, wanted) else hard
    with suppress(ValueError, OSError):  # macOS has a lower, undisclosed limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = raised
    if not _is_enough(soft, wanted):
        log.warning("fewer files allowed than connections", files=soft, wanted=wanted)


def _is_enough(files: int, wanted: int) -> bool:
    return files == resource.RLIM_INFINITY or files >= wanted
