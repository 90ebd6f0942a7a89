"""The CPU time and memory of another process."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from attrs import field, frozen

from relay.process.cpu_wait import read_cpu_wait

FULL_MACHINE = 0.95
"""Part of all cores from which on whoever works there waits for them."""


@frozen(kw_only=True)
class CpuShare:
    """What a process got of a core in some time."""

    used: float
    """Cores; a process of several threads may use more than one."""
    waited: float | None
    """Part of the time in which it was ready to run and had no core; None if that is not known."""

    @property
    def wanted(self) -> float:
        """Cores that it would have used if it had got them, as far as is known."""
        return self.used + (self.waited or 0.0)


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
    waited: Mapping[str, float] = field(factory=dict)
    """Seconds in which each process was ready to run and had no core, by the same names, or "" if
    it is one; without those of which that is not known."""

    def plus(self, other: ProcessUsage) -> ProcessUsage:
        return ProcessUsage(
            self.cpu_seconds + other.cpu_seconds,
            self.resident + other.resident,
            {**self.by_process, **other.by_process},
            other.read_at if self.read_at is None else self.read_at,
            {**self.waited, **other.waited},
        )

    def busiest_since(self, before: ProcessUsage, length: float) -> CpuShare | None:
        """What the process got that wanted the most since then, which is `length` seconds ago
        unless both were read at times of their own; None if nothing was read in between."""
        if self.read_at is not None and before.read_at is not None:
            length = self.read_at - before.read_at
        if length <= 0:
            return None
        now = self.by_process or {"": self.cpu_seconds}
        then = before.by_process if self.by_process else {"": before.cpu_seconds}
        shares = (
            CpuShare(
                used=max(0.0, used - then.get(name, used)) / length,
                waited=self._waited_since(before, name, length),
            )
            for name, used in now.items()
        )
        return max(shares, key=lambda each: each.wanted)

    def _waited_since(self, before: ProcessUsage, name: str, length: float) -> float | None:
        now, then = self.waited.get(name), before.waited.get(name)
        return None if now is None or then is None else max(0.0, now - then) / length


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
            waited = read_cpu_wait(pid)
            return ProcessUsage(
                ticks / os.sysconf("SC_CLK_TCK"),
                int(words[21]) * os.sysconf("SC_PAGESIZE"),
                waited={} if waited is None else {"": waited},
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
