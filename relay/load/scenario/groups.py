"""The groups of a scenario: phones, viewers, services and hostiles, with their keys."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from attrs import frozen

from relay.load import units
from relay.load.scenario.schema import (
    key,
    list_of,
    nested,
    one_of,
    switch,
    tables,
    text,
    whole,
)

COUNT = whole(0, 100_000)
DURATION = "a duration such as 500ms, 10s or 5min"
BANDWIDTH = "a bandwidth such as 500kbit/s or 1Mbit/s"
QUEUE = "a size such as 256KiB or 4MiB"
MAX_EXPONENT = 100
"""Exponent of `factor` after which a wait has reached `most` anyway; keeps it a float."""
FRAME_SIZE = f"a size such as 16KiB, up to {units.MAX_PAYLOAD_BYTES >> 20}MiB"
LAYER_WIDTH = "a whole number, 1 to 65535"
LAYER_ID = "1 to 16 letters, digits, dashes, dots and underscores"
MAX_LAYERS = 4
HOSTILE_KINDS = (
    *("silent", "garbage", "bad-token", "not-reading", "half-frame", "pings"),
    *("half-request", "half-message", "oversized", "flood"),
    *("heavy-alerts", "nested-frame", "unread-answers"),
)
KINDS_WITH_EVERY = ("pings", "heavy-alerts", "unread-answers")
MAX_LOOPBACK_ADDRESSES = 60_000


@frozen
class Arrival:
    """When the actors of a group join; all at once by default."""

    over: float | None = key(units.positive_duration, DURATION, None)
    """Seconds over which they join, evenly spaced."""
    rate: float | None = key(units.rate, "a rate such as 100/s", None)
    """Per second, evenly spaced."""
    poisson: float | None = key(units.rate, "a rate such as 100/s", None)
    """Mean number per second, of a Poisson process."""
    curve: tuple[float, ...] = key(list_of(units.number), "a list such as [1, 4, 9, 3]", ())
    """With `over`: how many join in each of so many equal parts of it, in proportion."""
    doubles_every: float | None = key(units.positive_duration, DURATION, None)
    """Seconds in which the number of those who have joined doubles, from the first one on."""
    after: float = key(units.duration, DURATION, 0.0)
    """Seconds before the first one joins."""

    def __attrs_post_init__(self) -> None:
        ways = (self.over, self.rate, self.poisson, self.doubles_every)
        if sum(each is not None for each in ways) > 1:
            raise ValueError("use one of over, rate, poisson and doubles_every")
        if self.curve and self.over is None:
            raise ValueError("curve needs over")
        if self.curve and not (min(self.curve) >= 0 and sum(self.curve) > 0):
            raise ValueError("curve must have numbers from 0, and one above 0")


def _short_arrival(value: object) -> Arrival:
    if value != "at once":
        raise ValueError('"at once" or a table with over, rate or poisson')
    return Arrival()


@frozen
class Network:
    """The simulated network of each connection; perfect by default."""

    bandwidth: float | None = key(units.bandwidth, BANDWIDTH, None)
    """Bits per second, towards the client; 0 if nothing passes."""
    upload: float | None = key(units.bandwidth, BANDWIDTH, None)
    """Bits per second, from the client; likewise."""
    queue: int | None = key(units.size, QUEUE, None)
    """Bytes that wait in front of `bandwidth`, as in a router, and look received to the relay."""
    upload_queue: int | None = key(units.size, QUEUE, None)
    """Bytes that wait in front of `upload`, and look sent to the client."""
    delay: float = key(units.duration, DURATION, 0.0)
    """Seconds each way."""
    jitter: float = key(units.duration, DURATION, 0.0)
    """Maximum random delay in addition, in seconds; the order of bytes stays."""
    stall_every: float | None = key(units.positive_duration, DURATION, None)
    """Seconds between the starts of two stalls."""
    stall_for: float = key(units.duration, DURATION, 1.0)
    """Seconds for which nothing moves."""
    cut_every: float | None = key(units.positive_duration, DURATION, None)
    """Mean number of seconds after which the connection is cut."""

    def __attrs_post_init__(self) -> None:
        if self.stall_every is not None and self.stall_for >= self.stall_every:
            raise ValueError("stall_for must be shorter than stall_every")
        if self.queue is not None and self.bandwidth is None:
            raise ValueError("queue needs bandwidth: it waits in front of it")
        if self.upload_queue is not None and self.upload is None:
            raise ValueError("upload_queue needs upload: it waits in front of it")


@frozen
class LinkChoice:
    """A link whose rates and round trip change over time, in place of a `Network`."""

    name: str | None = key(text, "the name of a link", None)
    """One that comes with relay."""
    recording: str | None = key(text, "the name of a file of `relay load record --link`", None)
    together: bool = key(switch, "true or false", default=False)
    """All clients are at the same place in it, and begin at its start; else each is elsewhere."""
    round_trip: float | None = key(units.duration, DURATION, None)
    """Seconds, in place of what the link has."""
    queue: int | None = key(units.size, QUEUE, None)
    """Likewise: bytes that wait in front of the downlink."""
    upload_queue: int | None = key(units.size, QUEUE, None)

    def __attrs_post_init__(self) -> None:
        if (self.name is None) == (self.recording is None):
            raise ValueError("use one of name and recording")


def _short_link(value: object) -> LinkChoice:
    try:
        return LinkChoice(name=text(value))
    except ValueError:
        raise ValueError("the name of a link, or a table with recording") from None


@frozen
class AppPauses:
    """The app of each actor pauses again and again, as when a phone is put in a pocket."""

    every: float = key(units.positive_duration, DURATION)
    """Seconds from one time to the next; each actor begins at another place in this."""
    lasts: float = key(units.positive_duration, DURATION)
    """Seconds of a pause."""
    connection: str = key(
        one_of("closes", "freezes", "stays"), '"closes", "freezes" or "stays"', "closes"
    )
    """What becomes of the connection: the app closes it; the system stops the app, which reads and
    writes nothing; or, of phones, it stays and only the pictures stop."""

    def __attrs_post_init__(self) -> None:
        if self.lasts >= self.every:
            raise ValueError("lasts must be shorter than every")


@frozen
class Reconnect:
    """How an actor reconnects. The relay's `retryAfter` is a minimum."""

    after: float = key(units.duration, DURATION, 0.5)
    """Seconds before the first attempt."""
    factor: float = key(units.number, "a number such as 2", 2.0)
    most: float = key(units.positive_duration, DURATION, 30.0)
    jitter: float = key(units.number, "a number from 0 to 1", 0.5)
    """The fraction of the wait that is random."""
    target: str = key(one_of("same", "next"), '"same" or "next"', "same")
    """Of several targets: the one that it was connected to, or the next, as a load balancer may
    choose."""

    def __attrs_post_init__(self) -> None:
        if not (0 <= self.jitter <= 1 and 1 <= self.factor <= 100):
            raise ValueError("jitter must be from 0 to 1, and factor from 1 to 100")

    def wait(self, attempt: int) -> float:
        """Seconds to wait before an attempt; the first is number 0."""
        return min(self.most, self.after * self.factor ** min(attempt, MAX_EXPONENT))


def _no_reconnect(value: object) -> Reconnect | None:
    if value is False:
        return None
    if value is True:
        return Reconnect()
    raise ValueError("true, false or a table")


@frozen
class FrameSource:
    """What a phone sends: random bytes of a size, a video, or a recording."""

    size: int | None = key(units.payload_size, FRAME_SIZE, None)
    most: int | None = key(units.payload_size, FRAME_SIZE, None)
    """With `size`: sizes are uniform between the two."""
    spread: float | None = key(units.number, "a number such as 0.3", None)
    """With `size` as the median: sizes are log-normal with this sigma."""
    delta_size: int | None = key(units.payload_size, FRAME_SIZE, None)
    """With `size`, which is that of keyframes."""
    video: str | None = key(text, "the name of a video file", None)
    recording: str | None = key(text, "the name of a file made by `relay load record`", None)

    def __attrs_post_init__(self) -> None:
        if sum(each is not None for each in (self.size, self.video, self.recording)) != 1:
            raise ValueError("use one of size, video and recording")
        further = (self.most, self.spread, self.delta_size)
        if self.size is None and any(each is not None for each in further):
            raise ValueError("most, spread and delta_size need size")
        if self.most is not None and (self.spread is not None or self.delta_size is not None):
            raise ValueError("use most without spread and delta_size")
        if self.most is not None and self.size is not None and self.most < self.size:
            raise ValueError("most must not be less than size")
        if self.spread is not None and not 0 < self.spread <= 3:
            raise ValueError("spread must be above 0 and up to 3")


def _short_frames(value: object) -> FrameSource:
    try:
        return FrameSource(size=units.payload_size(value))
    except ValueError:
        raise ValueError(f"{FRAME_SIZE}, or a table") from None


def _layer_id(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9._-]{1,16}", value):
        return value
    raise ValueError


@frozen
class PhoneLayer:
    """One of the sizes in which a phone sends each picture."""

    id: str = key(_layer_id, LAYER_ID)
    size: int = key(units.payload_size, FRAME_SIZE)
    """Bytes; those of keyframes if there are deltas."""
    width: int | None = key(whole(1, 65535), LAYER_WIDTH, None)
    """Pixels."""
    delta_size: int | None = key(units.payload_size, FRAME_SIZE, None)


DEFAULT_FRAMES = FrameSource(size=16 * 1024)


@frozen(kw_only=True)
class Group:
    """The keys that all groups have."""

    count: int = key(COUNT, "a whole number, 0 to 100000", 1)
    arrival: Arrival = nested(Arrival, Arrival(), short=_short_arrival)
    network: Network = nested(Network, Network())
    link: LinkChoice | None = nested(LinkChoice, None, short=_short_link)
    """In place of `network`."""
    pauses: AppPauses | None = nested(AppPauses, None)
    reconnect: Reconnect | None = nested(Reconnect, Reconnect(), short=_no_reconnect)
    expect_closes: tuple[int, ...] = key(list_of(whole(1000, 4999)), "a list of close codes", ())
    """Close codes that do not count as unexpected."""
    target: str | None = key(text, "the name of a target", None)
    """Of several targets, the one that all of them connect to at first; None: spread over all."""
    background: bool = key(switch, "true or false", default=False)
    """Its actors run in the last worker, which runs nobody else and gives way to all others on the
    CPU: so they delay what others measure by what they ask of the relay only."""

    def __attrs_post_init__(self) -> None:
        if self.link is not None and self.network != Network():
            raise ValueError("use one of network and link")
        pauses = self.pauses
        if pauses is not None and pauses.connection == "stays" and not self.has_camera:
            raise ValueError('connection = "stays" is for phones: others have nothing to stop')

    @property
    def has_camera(self) -> bool:
        return False


@frozen(kw_only=True)
class PhoneGroup(Group):
    fps: float = key(units.number, "a number from 0 to 1000", 10.0)
    frames: FrameSource = nested(FrameSource, DEFAULT_FRAMES, short=_short_frames)
    layers: tuple[PhoneLayer, ...] = tables(PhoneLayer)
    """In place of `frames`: the sizes of each picture, the smallest first."""
    keyframe_every: int | None = key(whole(1, 100_000), "a whole number, 1 to 100000", None)
    """Pictures from one keyframe to the next, between which there are deltas; None without
    deltas."""
    encoding: str = key(one_of("msgpack", "json"), '"msgpack" or "json"', "json")
    backlog: float = key(units.positive_duration, DURATION, 2.0)
    """Seconds that a frame may be late because the network is too slow; the phone withholds later
    ones and counts them."""

    @property
    def has_camera(self) -> bool:
        return True

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if not 0 <= self.fps <= 1000:
            raise ValueError("fps must be from 0 to 1000")
        if self.layers and self.frames is not DEFAULT_FRAMES:
            raise ValueError("use one of frames and layers")
        _check_layers(self.layers)
        _check_deltas(self.layers or (self.frames,), self.keyframe_every)

    @property
    def layer_ids(self) -> tuple[str, ...]:
        return tuple(layer.id for layer in self.layers)


def _check_layers(layers: Sequence[PhoneLayer]) -> None:
    ids = [layer.id for layer in layers]
    if len(ids) > MAX_LAYERS:
        raise ValueError(f"layers must be {MAX_LAYERS} at most")
    if len(set(ids)) < len(ids):
        raise ValueError("layers must have different ids")
    for smaller, larger in pairwise(layers):
        if smaller.size > larger.size or (smaller.width or 0) > (
            larger.width or smaller.width or 0
        ):
            raise ValueError("layers must begin with the smallest")


def _check_deltas(sources: Sequence[FrameSource | PhoneLayer], keyframe_every: int | None) -> None:
    with_deltas = [source.delta_size is not None for source in sources]
    if keyframe_every is None and any(with_deltas):
        raise ValueError("delta_size needs keyframe_every")
    if keyframe_every is not None and not all(with_deltas):
        where = "each layer" if isinstance(sources[0], PhoneLayer) else "frames"
        raise ValueError(f"keyframe_every needs delta_size in {where}")


def _watched(value: object) -> str | None:
    if value is False or value is None:  # None is what False became
        return None
    return str(text(value))


@frozen(kw_only=True)
class ViewerGroup(Group):
    watch: str | None = key(_watched, "the name of a group of phones, or false")
    """None: they are authenticated and watch nothing."""
    each: int = key(whole(1, 1000), "a whole number, 1 to 1000", 1)
    """Streams that each viewer watches on its one connection."""
    encoding: str = key(one_of("msgpack", "json"), '"msgpack" or "json"', "msgpack")
    policy: str = key(one_of("latest", "lossless"), '"latest" or "lossless"', "latest")
    max_fps: float | None = key(units.above_zero, "a number above 0", None)
    window: int | None = key(whole(1, 1000), "a whole number, 1 to 1000", None)
    """Frames in flight; the viewer acknowledges each."""
    max_width: int | None = key(whole(1, 65535), LAYER_WIDTH, None)
    """Pixels of the widest layer that the viewer wants."""
    layer: str | None = key(_layer_id, LAYER_ID, None)
    """The only layer that the viewer wants."""
    inspect: bool = key(switch, "true or false", default=True)
    """Whether it looks into frames. A large audience costs half of the CPU if it counts them only,
    with the gaps in their `seq`."""


@frozen(kw_only=True)
class ServiceGroup(Group):
    watch: str = key(text, "the name of a group of phones")
    rate: float = key(units.rate, "a rate such as 2/s", 1.0)
    """Alerts per second of each service, for the streams in turn."""
    poisson: bool = key(switch, "true or false", default=False)
    severity: str = key(one_of("low", "medium", "high", "critical"), "a severity", "medium")


@frozen(kw_only=True)
class HostileGroup(Group):
    kind: str = key(one_of(*HOSTILE_KINDS), f"one of {', '.join(HOSTILE_KINDS)}")
    watch: str | None = key(text, "the name of a group of phones", None)
    frames: int = key(units.payload_size, FRAME_SIZE, 64 * 1024)
    """Bytes of the frames of a `flood`."""
    every: float | None = key(units.duration, DURATION, None)
    """Seconds from one burst of pings, alert or request to the next; 0 for no pause."""
    addresses: int = key(
        whole(1, MAX_LOOPBACK_ADDRESSES), f"a whole number, 1 to {MAX_LOOPBACK_ADDRESSES}", 1
    )
    """Addresses of this machine's loopback interface that they come from, in turn."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.every is not None and self.kind not in KINDS_WITH_EVERY:
            raise ValueError(f"every is for {', '.join(KINDS_WITH_EVERY)}")
