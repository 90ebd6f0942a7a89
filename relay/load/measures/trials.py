"""What a self-test measured. No I/O."""

from __future__ import annotations

from attrs import frozen


@frozen(kw_only=True)
class TrialResult:
    """One trial of a generator against the null server."""

    name: str
    frames_per_second: float
    cores: float
    """How much of a core the generator used."""
    connected: int
    lateness: float
    """p99, in seconds."""
    times: dict[str, tuple[float, float]]
    """p50 and p99 in seconds, by name."""
    faults: dict[str, int]
    """What was not right, by name."""

    @property
    def frames_per_core(self) -> float:
        """Frames per second that a whole core would make."""
        return self.frames_per_second / max(self.cores, 1e-9)
