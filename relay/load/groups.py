"""The groups of a scenario: what its phones, viewers, services and hostiles are like. Floor 6."""

from __future__ import annotations

from attrs import frozen

from relay.load import units
from relay.load.schema import key, list_of, nested, one_of, switch, text, whole

COUNT = whole(0, 100_000)
DURATION = "a duration such as 500ms, 10s or 5min"
BANDWIDTH = "a bandwidth such as 500kbit/s or 1Mbit/s"
MOST_POWER = 100
"""Of what a wait is multiplied by: by then it is as long as it may be, and still a float."""
HOSTILE_KINDS = ("silent", "garbage", "bad-token", "not-reading", "half-frame", "pings")


@frozen
class Arrival:
    """When those of a group come: all at once if nothing else is said."""

    over: float | None = key(units.positive_duration, DURATION, None)
    """Seconds: evenly over this time."""
    rate: float | None = key(units.rate, "a rate such as 100/s", None)
    """Per second, evenly spaced."""
    poisson: float | None = key(units.rate, "a rate such as 100/s", None)
    """Per second, on average, independently of one another."""
    after: float = key(units.duration, DURATION, 0.0)
    """Seconds before the first may come."""

    def __attrs_post_init__(self) -> None:
        if sum(each is not None for each in (self.over, self.rate, self.poisson)) > 1:
            raise ValueError("use one of over, rate and poisson")


def _short_arrival(value: object) -> Arrival:
    if value != "at once":
        raise ValueError('"at once" or a table with over, rate or poisson')
    return Arrival()


def _stall(value: object) -> float:
    return units.positive_duration(value)


@frozen
class Network:
    """The shape of one connection's network. All that is not said is as good as it is."""

    bandwidth: float | None = key(units.bandwidth, BANDWIDTH, None)
    """Bits per second, towards the client."""
    upload: float | None = key(units.bandwidth, BANDWIDTH, None)
    """Bits per second, from the client."""
    delay: float = key(units.duration, DURATION, 0.0)
    """Seconds each way."""
    jitter: float = key(units.duration, DURATION, 0.0)
    """Up to so many seconds more, at random; the order stays."""
    stall_every: float | None = key(_stall, DURATION, None)
    stall_for: float = key(units.duration, DURATION, 1.0)
    """Nothing moves for so long, each `stall_every`."""
    cut_every: float | None = key(_stall, DURATION, None)
    """Seconds, on average, after which the connection is torn off."""

    def __attrs_post_init__(self) -> None:
        if self.stall_every is not None and self.stall_for >= self.stall_every:
            raise ValueError("stall_for must be shorter than stall_every")


@frozen
class Reconnect:
    """How a client comes back. The server's `retryAfter` is a minimum besides."""

    after: float = key(units.duration, DURATION, 0.5)
    """Seconds before the first attempt."""
    factor: float = key(units.number, "a number such as 2", 2.0)
    most: float = key(units.positive_duration, DURATION, 30.0)
    jitter: float = key(units.number, "a number from 0 to 1", 0.5)
    """This part of the wait is at random."""

    def __attrs_post_init__(self) -> None:
        if not (0 <= self.jitter <= 1 and 1 <= self.factor <= 100):
            raise ValueError("jitter must be from 0 to 1, and factor from 1 to 100")

    def wait(self, attempt: int) -> float:
        """Seconds before this attempt, of which the first is number 0."""
        return min(self.most, self.after * self.factor ** min(attempt, MOST_POWER))


def _no_reconnect(value: object) -> Reconnect | None:
    if value is False:
        return None
    if value is True:
        return Reconnect()
    raise ValueError("true, false or a table")


@frozen
class Frames:
    """What a phone sends: made up, a video, or a recording."""

    size: int | None = key(units.size, "a size such as 16KiB", None)
    most: int | None = key(units.size, "a size such as 64KiB", None)
    """With `size`: anything between the two."""
    spread: float | None = key(units.number, "a number such as 0.3", None)
    """With `size`: log-normal around it as the median, with this sigma."""
    video: str | None = key(text, "the name of a video file", None)
    recording: str | None = key(text, "the name of a file made by `relay load record`", None)

    def __attrs_post_init__(self) -> None:
        if sum(each is not None for each in (self.size, self.video, self.recording)) != 1:
            raise ValueError("use one of size, video and recording")
        if self.size is None and (self.most is not None or self.spread is not None):
            raise ValueError("most and spread go with size")
        if self.most is not None and self.spread is not None:
            raise ValueError("use one of most and spread")
        if self.most is not None and self.size is not None and self.most < self.size:
            raise ValueError("most must not be less than size")
        if self.spread is not None and not 0 < self.spread <= 3:
            raise ValueError("spread must be above 0 and up to 3")


def _short_frames(value: object) -> Frames:
    try:
        return Frames(size=units.size(value))
    except ValueError:
        raise ValueError("a size such as 16KiB, or a table") from None


CLOSE_CODES = list_of(whole(1000, 4999))


@frozen(kw_only=True)
class Group:
    """Actors of one kind."""

    count: int = key(COUNT, "a whole number, 0 to 100000", 1)
    arrival: Arrival = nested(Arrival, Arrival(), short=_short_arrival)
    network: Network = nested(Network, Network())
    reconnect: Reconnect | None = nested(Reconnect, Reconnect(), short=_no_reconnect)
    expect_closes: tuple[int, ...] = key(CLOSE_CODES, "a list of close codes", ())
    """Close codes that are no failure here."""


@frozen(kw_only=True)
class Phones(Group):
    fps: float = key(units.number, "a number from 0 to 1000", 10.0)
    frames: Frames = nested(Frames, Frames(size=16 * 1024), short=_short_frames)
    encoding: str = key(one_of("msgpack", "json"), '"msgpack" or "json"', "json")
    backlog: float = key(units.positive_duration, DURATION, 2.0)
    """Seconds that a frame may be late because the network does not take it; then the phone leaves
    it out, which is counted."""

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.fps <= 1000:
            raise ValueError("fps must be from 0 to 1000")


@frozen(kw_only=True)
class Viewers(Group):
    watch: str = key(text, "the name of a group of phones")
    each: int = key(whole(1, 1000), "a whole number, 1 to 1000", 1)
    """Streams that each watches, on its one connection."""
    encoding: str = key(one_of("msgpack", "json"), '"msgpack" or "json"', "msgpack")
    policy: str = key(one_of("latest", "lossless"), '"latest" or "lossless"', "latest")
    max_fps: float | None = key(units.above_zero, "a number above 0", None)
    window: int | None = key(whole(1, 1000), "a whole number, 1 to 1000", None)
    """Frames that may be under way; the viewer acknowledges each."""


@frozen(kw_only=True)
class Services(Group):
    watch: str = key(text, "the name of a group of phones")
    rate: float = key(units.rate, "a rate such as 2/s", 1.0)
    """Alerts a second, of each service, to the streams in turn."""
    poisson: bool = key(switch, "true or false", default=False)
    severity: str = key(one_of("low", "medium", "high", "critical"), "a severity", "medium")


@frozen(kw_only=True)
class Hostiles(Group):
    kind: str = key(one_of(*HOSTILE_KINDS), f"one of {', '.join(HOSTILE_KINDS)}")
    watch: str | None = key(text, "the name of a group of phones", None)
