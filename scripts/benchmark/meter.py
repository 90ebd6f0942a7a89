"""Reads what a server uses up, and what its clients use up beside it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
from workloads import Result


class Meter:
    """Measures from its making on; several add to one result."""

    def __init__(self, pid: int) -> None:
        self.server = psutil.Process(pid)
        self.resident = self.server.memory_info().rss
        self.generator, self.began = time.process_time(), time.monotonic()
        self.used, self.used_by_main = self._cpu_times(), self._main_thread()

    @classmethod
    def since_start(cls, pid: int) -> Meter:
        """Measure a server from its first moment on."""
        meter = cls(pid)
        meter.used, meter.used_by_main = (0.0, 0.0), 0.0
        return meter

    def read(self, result: Result) -> None:
        """Add what was used up since the beginning."""
        total, system = self._cpu()
        result.user += max(0.0, total - system)
        result.system += system
        result.main_thread += self._main_thread() - self.used_by_main
        result.generator += time.process_time() - self.generator
        result.seconds += time.monotonic() - self.began
        result.resident = self.server.memory_info().rss
        result.grown += result.resident - self.resident

    def read_end(self, result: Result) -> None:
        """Add it as the price of the ends of connections."""
        result.end += self._cpu()[0]
        result.end_main_thread += self._main_thread() - self.used_by_main

    def _cpu(self) -> tuple[float, float]:
        """Seconds since the beginning in all, and of that in the kernel."""
        (total, system), (total_before, system_before) = self._cpu_times(), self.used
        return total - total_before, system - system_before

    def _cpu_times(self) -> tuple[float, float]:
        used = self.server.cpu_times()
        if sys.platform != "linux":
            return used.user + used.system, used.system
        # The process's CPU clock (clock_getcpuclockid(3)) counts in ns, `cpu_times` in ticks.
        return time.clock_gettime(~self.server.pid << 3 | 2), used.system

    def _main_thread(self) -> float:
        """Seconds of CPU."""
        statistics = Path(f"/proc/{self.server.pid}/task/{self.server.pid}/schedstat")
        if statistics.exists():  # in ns
            return int(statistics.read_text().split()[0]) / 1e9
        first = self.server.threads()[0]
        return float(first.user_time + first.system_time)
