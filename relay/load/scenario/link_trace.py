"""Links whose rates and round trip change over time: named ones, and those that were recorded.

A file of a link has a line of JSON with what is true of all of it, and one for each step. The named
links are such files in `links/`, and each says which publication its numbers come from.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from functools import cached_property
from importlib import resources
from pathlib import Path

import msgspec
from attrs import field, frozen

from relay.errors import RelayError
from relay.load.scenario.groups import LinkChoice, Network

LINK_FORMAT = "relay-link-1"
NAMED_LINKS = resources.files("relay.load.scenario") / "links"
DEFAULT_QUEUE = 1 << 20
"""Bytes that wait in front of the downlink where a link says nothing else: radios hold seconds."""
DEFAULT_UPLOAD_QUEUE = 256 << 10
MAX_LINK_STEPS = 200_000
MAX_LINK_FILE_BYTES = 32 << 20
MIN_TRACE_SECONDS = 0.1
"""A shorter link would be nothing but changes."""
MAX_BITS_PER_SECOND = 1e12
MAX_ROUND_TRIP = 60.0


class BadLink(RelayError):
    """A file that does not hold a link."""


class LinkHead(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is true of all of a link; the first line of its file."""

    format: str = LINK_FORMAT
    source: str = ""
    """Where the numbers come from, for people."""
    length: float = 1.0
    """Seconds after which it begins anew."""
    queue: int | None = None
    """Bytes that wait in front of the downlink."""
    upload_queue: int | None = None
    jitter: float = 0.0
    """Maximum random delay in addition, in seconds, each way."""


class LinkStep(msgspec.Struct, frozen=True):
    """What a link carries from a moment on; one line of its file."""

    at: float
    """Seconds after the start."""
    down: float | None = None
    """Bits per second to the client; 0 in a hole, None without limit."""
    up: float | None = None
    round_trip: float | None = None
    """Seconds, without what waits in queues; None if it is not known."""


@frozen
class LinkTrace:
    """A link over time, in a loop."""

    name: str
    head: LinkHead
    steps: tuple[LinkStep, ...]
    _starts: tuple[float, ...] = field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_starts", tuple(step.at for step in self.steps))

    def step_at(self, at: float) -> tuple[int, float]:
        """The number of the step at a time, and when the next one begins; the time may be any."""
        length = self.head.length
        rounds, within = divmod(at, length)
        number = max(0, bisect_right(self._starts, within) - 1)
        following = self._starts[number + 1] if number + 1 < len(self._starts) else length
        return number, rounds * length + following


@frozen(eq=False)
class ChosenLink:
    """A link as a group uses it."""

    trace: LinkTrace
    choice: LinkChoice

    @cached_property
    def networks(self) -> tuple[Network, ...]:
        """The network in each step."""
        return tuple(map(self._network, self.trace.steps))

    def network_at(self, at: float) -> tuple[Network, float]:
        """The network at a time of the link, and when another one begins."""
        number, until = self.trace.step_at(at)
        return self.networks[number], until

    def _network(self, step: LinkStep) -> Network:
        choice, head = self.choice, self.trace.head
        round_trip = step.round_trip if choice.round_trip is None else choice.round_trip
        queue = choice.queue or head.queue or DEFAULT_QUEUE
        upload_queue = choice.upload_queue or head.upload_queue or DEFAULT_UPLOAD_QUEUE
        return Network(
            bandwidth=step.down,
            queue=None if step.down is None else queue,
            upload=step.up,
            upload_queue=None if step.up is None else upload_queue,
            delay=(round_trip or 0.0) / 2,
            jitter=head.jitter,
        )


def link_names() -> list[str]:
    """The named links."""
    files = (path.name for path in NAMED_LINKS.iterdir())
    return sorted(name.removesuffix(".link") for name in files if name.endswith(".link"))


def read_named_link(name: str) -> LinkTrace:
    return parse_link((NAMED_LINKS / f"{name}.link").read_bytes(), name)


def read_link(path: Path) -> LinkTrace:
    """Read a recorded link; `BadLink`."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_LINK_FILE_BYTES + 1)
    except OSError as error:
        raise BadLink(f"cannot read {path}: {error.strerror}") from None
    return parse_link(content, str(path))


def parse_link(content: bytes, name: str) -> LinkTrace:
    """Read the content of a file of a link; `BadLink`."""
    if len(content) > MAX_LINK_FILE_BYTES:
        raise BadLink(f"{name} is longer than {MAX_LINK_FILE_BYTES >> 20} MiB")
    lines = content.splitlines()
    decoder = msgspec.json.Decoder(LinkStep)
    try:
        head = msgspec.json.decode(lines[0] if lines else b"", type=LinkHead)
        if head.format != LINK_FORMAT:
            raise BadLink(f"{name} was not made by `relay load record --link`")
        steps = tuple(decoder.decode(line) for line in lines[1:])
    except (ValueError, RecursionError) as problem:
        raise BadLink(f"{name} is not a recorded link: {problem}") from None
    _check_head(head, name)
    _check_steps(head, steps, name)
    return LinkTrace(name, head, steps)


def _check_head(head: LinkHead, name: str) -> None:
    if not (MIN_TRACE_SECONDS <= head.length < 1e7 and 0 <= head.jitter <= MAX_ROUND_TRIP):
        raise BadLink(f"{name}: a length of {head.length} s with a jitter of {head.jitter} s")
    for queue in (head.queue, head.upload_queue):
        if queue is not None and not 0 < queue <= 1 << 30:
            raise BadLink(f"{name}: a queue of {queue} bytes")


def _check_steps(head: LinkHead, steps: tuple[LinkStep, ...], name: str) -> None:
    if not steps or steps[0].at != 0:
        raise BadLink(f"{name} has no step at 0 s")
    if len(steps) > MAX_LINK_STEPS:
        raise BadLink(f"{name} has more than {MAX_LINK_STEPS} steps")
    before = -1.0
    for step in steps:
        if not before < step.at < head.length:
            raise BadLink(f"{name}: a step at {step.at} s is out of order")
        before = step.at
        rates = (step.down, step.up)
        if any(not _is_within(rate, MAX_BITS_PER_SECOND) for rate in rates) or not _is_within(
            step.round_trip, MAX_ROUND_TRIP
        ):
            raise BadLink(f"{name}: what it carries at {step.at} s is out of range")


def _is_within(value: float | None, most: float) -> bool:
    return value is None or (math.isfinite(value) and 0 <= value <= most)


def write_link(head: LinkHead, steps: Iterable[LinkStep]) -> bytes:
    """The content of a file of a link."""
    lines = (msgspec.json.encode(each) for each in (head, *steps))
    return b"".join(line + b"\n" for line in lines)
