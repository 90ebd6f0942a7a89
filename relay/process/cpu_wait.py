"""How long a process has waited for a core."""

from __future__ import annotations

from pathlib import Path

NANOSECONDS_PER_SECOND = 1_000_000_000


def read_cpu_wait(process: int | None = None) -> float | None:
    """Seconds for which the main thread of a process, by default this one, was ready to run and had
    no core: others had them all, or it may have no more, as in a container with a limit.

    None when the process has ended, and where the system does not say; only Linux does.
    """
    whose = "self" if process is None else str(process)
    try:
        words = Path(f"/proc/{whose}/schedstat").read_text("ascii").split()
        ran, waited = int(words[0]), int(words[1])
    except (OSError, ValueError, IndexError):
        return None
    # A kernel that does not count has zeros there. A process that can be read has run.
    return waited / NANOSECONDS_PER_SECOND if ran else None
