"""The CPU time and memory of another process."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from attrs import field, frozen

FULL_MACHINE = 0.95
"""Part of all cores from which on whoever works there waits for them."""


@frozen
class ProcessUsage:
    """What a process has used so far."""

    cpu_seconds: float
    resident: int
    """Bytes."""
    by_process: Mapping[str, float] = field(factory=dict)
    """CPU seconds of each of several processes, by name; empty if it is one."""
    read_at: float | None = None
    """Seconds, by any clock, if it was not read just now but at a time of its own."""

    def plus(self, other: ProcessUsage) -> ProcessUsage:
        return ProcessUsage(
            self.cpu_seconds + other.cpu_seconds,
            self.resident + other.resident,
            {**self.by_process, **other.by_process},
            other.read_at if self.read_at is None else self.read_at,
        )

    def busiest_since(self, before: ProcessUsage, length: float) -> float | None:
        """Cores that the busiest process used since then, which is `length` seconds ago unless both
        were read at times of their own; None if nothing was read in between."""
        if self.read_at is not None and before.read_at is not None:
            length = self.read_at - before.read_at
        if length <= 0:
            return None
        return max(0.0, self._most_since(before)) / length

    def _most_since(self, before: ProcessUsage) -> float:
        """CPU seconds of the process that used the most."""
        if not self.by_process:
            return self.cpu_seconds - before.cpu_seconds
        return max(
            seconds - before.by_process.get(name, seconds)
            for name, seconds in self.by_process.items()
        )


@frozen
class CoreTime:
    """The time of all cores of this machine since it started, in seconds or any other unit."""

    busy: float
    total: float

    def part_since(self, before: CoreTime) -> float | None:
        """The part of the time in which they were busy; None if no time has passed."""
        total = self.total - before.total
        return (self.busy - before.busy) / total if total > 0 else None


def read_core_time() -> CoreTime | None:
    """Read it from /proc; None on other systems."""
    try:
        with Path("/proc/stat").open(encoding="ascii") as file:
            numbers = [float(word) for word in file.readline().split()[1:9]]
        idle = numbers[3] + numbers[4]  # waiting for a disk is idle, too
    except (OSError, ValueError, IndexError):
        return None
    return CoreTime(sum(numbers) - idle, sum(numbers))


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
