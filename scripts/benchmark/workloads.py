"""What is measured: each workload by name."""

from __future__ import annotations

from typing import Literal

import msgspec

Answers = Literal["pongs", "none", "acks", "pairs"]
"""What viewers send back. `pongs`: a pong for each ping, as every browser does by itself. `none`:
nothing, not even to pings. `acks`: pongs, and each of relay's frames is acknowledged. `pairs`: the
same, but of frames that come close together each second one, as by relay's own clients."""
ACK_WINDOW = 4
"""Frames that may be unacknowledged with `acks` and `pairs`; what relay's own clients ask for."""
PAIR_SECONDS = 0.02
"""Time between two frames up to which `pairs` acknowledges them together."""

KIB = 1024
MEGABIT = 125_000
"""Bytes a second."""
DEEP = 4 * 1024 * KIB
"""Bytes that a bloated link takes before it pushes back."""


class FanOut(msgspec.Struct, frozen=True, tag="fan-out"):
    """Streams with viewers that read as fast as they can."""

    size: int
    """Bytes of `data` in each frame, as they travel."""
    viewers: int
    streams: int = 1
    fps: float = 0
    """Of each stream; 0 for as fast as the server takes them."""
    answers: Answers = "pongs"

    @property
    def floor(self) -> float | None:
        return None


class Joining(msgspec.Struct, frozen=True, tag="joining"):
    """Connections that are accepted, authenticate and subscribe, one after the other."""

    connections: int = 400

    @property
    def floor(self) -> float | None:
        return None


class Storm(msgspec.Struct, frozen=True, tag="storm"):
    """Connections that all come at once, authenticate and subscribe, and then all end."""

    connections: int = 300
    times: int = 3
    """Behind one to warm up."""

    @property
    def floor(self) -> float | None:
        return None


class Idle(msgspec.Struct, frozen=True, tag="idle"):
    """Connections that have subscribed, and to which nothing happens."""

    first: int = 500
    """Not counted: they pay for what only the first ones need."""
    connections: int = 1500

    @property
    def floor(self) -> float | None:
        return None


class Base(msgspec.Struct, frozen=True, tag="base"):
    """A server with nobody connected."""

    seconds: float = 2
    """For what it does behind its start."""

    @property
    def floor(self) -> float | None:
        return None


class Start(msgspec.Struct, frozen=True, tag="start"):
    """A server that starts, until it says that it listens; PostgreSQL runs already."""

    times: int = 3
    """Behind one to warm up."""

    @property
    def floor(self) -> float | None:
        return None


class Slow(msgspec.Struct, frozen=True, tag="slow"):
    """One viewer on a thin link beside a healthy one."""

    size: int = 64 * KIB
    fps: float = 30
    rate: int = MEGABIT
    """Of the thin link, bytes a second."""
    queue: int = 0
    """Bytes that the thin link holds on the way; without any, the viewer's small window is all."""
    window: int | None = None
    """Frames that may be unacknowledged, where the server knows of such a thing."""
    front: Literal["nginx"] | None = None
    """What stands between the server and all clients."""
    alone: float = 10
    """Seconds before the slow viewer comes, in which the healthy one sets the measure."""
    answers: Literal["pongs", "none"] = "pongs"
    """Beside the acknowledgements that `window` says."""

    @property
    def floor(self) -> float:
        """Seconds that a frame's bytes need on the thin link."""
        return self.size / self.rate


Workload = FanOut | Joining | Storm | Idle | Base | Start | Slow

WORKLOADS: dict[str, Workload] = {
    "50-viewers-16k": FanOut(16 * KIB, 50),
    "100-viewers-64k-20fps": FanOut(64 * KIB, 100, fps=20),
    "100-viewers-16k-30fps": FanOut(16 * KIB, 100, fps=30),
    "100-viewers-2k-100fps": FanOut(2 * KIB, 100, fps=100),
    "1-viewer-64k": FanOut(64 * KIB, 1),
    "1-viewer-2k": FanOut(2 * KIB, 1),
    "100-streams-32k-10fps": FanOut(32 * KIB, 2, streams=100, fps=10),
    "joining": Joining(),
    "storm": Storm(),
    "storm-2000": Storm(2000, times=1),
    "idle-memory": Idle(),
    "base": Base(),
    "start": Start(),
    "slow": Slow(),
    "slow-deep": Slow(queue=DEEP),
    "slow-deep-acks": Slow(queue=DEEP, window=1),
    "slow-nginx": Slow(front="nginx"),
    "slow-nginx-acks": Slow(front="nginx", window=1),
}


def answering(name: str, answers: Answers) -> dict[str, Workload]:
    """A workload, by its name, whose viewers answer so; none where there is no such workload. Where
    nothing is to be answered, it is always the same one."""
    workload = WORKLOADS[name]
    named = name if answers == "pongs" else f"{name} {answers}"
    match workload:
        case FanOut():
            return {named: msgspec.structs.replace(workload, answers=answers)}
        case Slow():  # whether it acknowledges is its own
            if answers in {"acks", "pairs"}:
                return {}
            return {named: msgspec.structs.replace(workload, answers=answers)}
        case _:
            return {name: workload}


class Order(msgspec.Struct, frozen=True):
    """All that the generator has to know."""

    workload: Workload
    port: int
    pid: int
    """Of the server, whose CPU time and memory are read."""
    seconds: float
    binary: bool
    """MessagePack, or JSON."""
    token: str
    is_relay: bool
    cpu: int | None = None
    """To which the generator is bound."""


class Result(msgspec.Struct):
    """What one server did in one run."""

    frames: int = 0
    """That viewers received."""
    seconds: float = 0
    user: float = 0
    """Seconds of the server's CPU time."""
    system: float = 0
    main_thread: float = 0
    """Of that, what its main thread took: relay's queries run in others."""
    resident: int = 0
    """Bytes of the server's memory at the end."""
    grown: int = 0
    """Bytes by which that grew."""
    end: float = 0
    """Seconds of the server's CPU time for the ends of the connections."""
    end_main_thread: float = 0
    """Of that, what its main thread took."""
    generator: float = 0
    """CPU seconds of the generator itself."""
    answers: int = 0
    """Pongs and acknowledgements that viewers sent."""
    answering: float = 0
    """CPU seconds of the generator, of those above, that went into these."""
    ages: list[float] = []
    """Of frames, seconds from sending to the last byte's arrival. Sampled where there are many."""
    times: list[float] = []
    """When these frames arrived, seconds since the begin."""
    healthy_alone: list[float] = []
    """Ages at the healthy viewer before the slow one came."""
    healthy_beside: list[float] = []
    """And from then on."""

    @property
    def cost(self) -> float:
        """The server's CPU, in seconds for each frame that was received."""
        return (self.user + self.system) / self.frames if self.frames else float("nan")
