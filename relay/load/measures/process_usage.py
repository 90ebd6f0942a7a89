"""The CPU time and memory of another process."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from attrs import frozen


@frozen
class ProcessUsage:
    """What a process has used so far."""

    cpu_seconds: float
    resident: int
    """Bytes."""

    def plus(self, other: ProcessUsage) -> ProcessUsage:
        return ProcessUsage(self.cpu_seconds + other.cpu_seconds, self.resident + other.resident)


def read_process_usage(pid: int) -> ProcessUsage | None:
    """Read it from /proc or from `ps`; None when the process has ended."""
    try:
        if Path("/proc/self/stat").exists():
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks = int(words[11]) + int(words[12])
            return ProcessUsage(
                ticks / os.sysconf("SC_CLK_TCK"), int(words[21]) * os.sysconf("SC_PAGESIZE")
            )
        shown = subprocess.run(  # noqa: S603 (a number)
            ["/bin/ps", "-o", "rss=,time=", "-p", str(pid)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        minutes, _, seconds = shown[1].rpartition(":")
        return ProcessUsage(float(minutes or 0) * 60 + float(seconds), int(shown[0]) * 1024)
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None
