"""A scenario: who takes part in a load test, when, and what must come of it. Floor 6."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
from attrs import field, frozen

from relay.load import units
from relay.load.checks import Check, parse_check
from relay.load.schema import (
    Place,
    ScenarioError,
    key,
    list_of,
    nearest,
    nested,
    one_of,
    read_table,
    switch,
    text,
    whole,
)

GROUP_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
COUNT = whole(0, 100_000)
DURATION = "a duration such as 500ms, 10s or 5min"
BANDWIDTH = "a bandwidth such as 500kbit/s or 1Mbit/s"
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
    max_fps: float | None = key(units.number, "a number", None)
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


@frozen
class Target:
    start: bool = key(switch, "true or false", default=False)
    """A relay of its own, with a database that goes away with it."""
    url: str | None = key(text, "an address such as ws://localhost:3000", None)
    ledger: bool | None = key(switch, "true or false", None)
    """Compare the relay's own figures with ours. Only where nobody else uses it."""
    settings: tuple[str, ...] = key(list_of(text), 'a list such as ["--auth-timeout", "5"]', ())
    """Flags for the relay that is started."""

    def __attrs_post_init__(self) -> None:
        if self.start == (self.url is not None):
            raise ValueError("use one of start = true and url")
        if self.settings and not self.start:
            raise ValueError("settings go with start = true")

    @property
    def checks_ledger(self) -> bool:
        return self.start if self.ledger is None else self.ledger


@frozen
class Tokens:
    """Where tokens come from; made in the database of the relay that is started by default."""

    file: str | None = key(text, "the name of a file with a token on each line", None)
    command: tuple[str, ...] | None = key(list_of(text), "a list: a program and arguments", None)
    service_file: str | None = key(text, "the name of a file with service tokens", None)
    service_command: tuple[str, ...] | None = key(list_of(text), "a list", None)
    data_dir: str | None = key(text, "the data folder of a relay on this machine", None)
    sessions: int = key(whole(1, 10_000), "a whole number, 1 to 10000", 1)
    """So many sessions are made, all of one user."""
    ttl: float = key(units.positive_duration, DURATION, 7 * 86400.0)

    def __attrs_post_init__(self) -> None:
        if sum(each is not None for each in (self.file, self.command, self.data_dir)) > 1:
            raise ValueError("use one of file, command and data_dir")


@frozen
class Stage:
    """A part of the run, from which on something is otherwise."""

    duration: float = key(units.positive_duration, DURATION)
    name: str = key(text, "a name", "")
    cut: tuple[str, ...] = key(list_of(text), "a list of groups", ())
    """All connections of these groups are torn off when it begins."""
    change: Mapping[str, Any] = key(lambda value: value, "a table of groups", factory=dict)


Kind = Literal["phones", "viewers", "services", "hostiles"]
KINDS: dict[Kind, type[Group]] = {
    "phones": Phones,
    "viewers": Viewers,
    "services": Services,
    "hostiles": Hostiles,
}
CHANGEABLE = {"count", "fps", "rate", "network", "arrival"}


def _lateness(value: object) -> float | None:
    return None if value == "any" else units.positive_duration(value)


@frozen(kw_only=True)
class Scenario:
    name: str = key(text, "a name", "")
    duration: float | None = key(units.positive_duration, DURATION, None)
    seed: int = key(whole(0, 1 << 31), "a whole number", 1)
    workers: int = key(whole(1, 64), "a whole number, 1 to 64", 1)
    grace: float = key(units.duration, DURATION, 1.0)
    """Seconds, after the last frame, for what is still under way."""
    lateness: float | None = key(_lateness, f'{DURATION}, or "any"', 0.1)
    """Seconds: the p99 by which the generator itself may be late."""
    abort_on_fail: bool = key(switch, "true or false", default=False)
    script: str | None = key(text, "the name of a Python file", None)
    check: tuple[str, ...] = key(list_of(text), "a list of checks", ())
    target: Target = nested(Target, Target(start=True))
    tokens: Tokens = nested(Tokens, Tokens())
    phones: Mapping[str, Any] = key(lambda value: value, "tables by name", factory=dict)
    viewers: Mapping[str, Any] = key(lambda value: value, "tables by name", factory=dict)
    services: Mapping[str, Any] = key(lambda value: value, "tables by name", factory=dict)
    hostiles: Mapping[str, Any] = key(lambda value: value, "tables by name", factory=dict)
    stages: tuple[Any, ...] = key(list_of(lambda value: value), "an array of tables", ())
    checks: tuple[Check, ...] = field(default=(), init=True)
    folder: Path = field(factory=Path.cwd)
    """Where relative names of files start."""

    @property
    def groups(self) -> dict[str, Group]:
        return {**self.phones, **self.viewers, **self.services, **self.hostiles}

    @property
    def length(self) -> float:
        """Seconds from the start to the last frame."""
        return sum(float(stage.duration) for stage in self.stages)

    def path(self, name: str) -> Path:
        return self.folder / Path(name).expanduser()


def load_scenario(path: Path) -> Scenario:
    """Read a scenario from a file; `ScenarioError`."""
    try:
        source = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ScenarioError(str(path), f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise ScenarioError(str(path), "is not UTF-8") from None
    return parse_scenario(source, str(path), path.parent)


def parse_scenario(source: str, file: str, folder: Path) -> Scenario:
    """Read a scenario; relative names in it start in `folder`."""
    try:
        table = tomllib.loads(source)
    except tomllib.TOMLDecodeError as problem:
        raise ScenarioError(file, f"is not TOML: {problem}") from None
    place = Place(file)
    raw = read_table(Scenario, table, place)
    groups: dict[str, Any] = {}
    for kind, cls in KINDS.items():
        groups[kind] = dict(_read_groups(cls, getattr(raw, kind), place.at(kind)))
    scenario = attrs.evolve(
        raw,
        **groups,
        name=raw.name or Path(file).stem,
        stages=_read_stages(raw, place),
        folder=folder,
    )
    _check_groups(scenario, groups, place)
    names = scenario.groups
    checks = []
    for number, line in enumerate(raw.check):
        try:
            checks.append(parse_check(line, names, scripted=raw.script is not None))
        except ValueError as problem:
            raise place.at(f"check[{number}]").error(str(problem)) from None
    scenario = attrs.evolve(scenario, checks=tuple(checks))
    for number, stage in enumerate(scenario.stages):
        for name in stage.change:
            changed(scenario, number, name, place)  # finds what is wrong before anything starts
    return scenario


def changed(scenario: Scenario, stage: int, name: str, place: Place | None = None) -> Group:
    """A group as it is from the start of this stage on."""
    place = place or Place(scenario.name)
    group = scenario.groups[name]
    for number, each in enumerate(scenario.stages[: stage + 1]):
        change = each.change.get(name)
        if change is None:
            continue
        where = place.at(f"stages[{number}].change.{name}")
        if not isinstance(change, Mapping):
            raise where.error("expected a table")
        known = CHANGEABLE & {attribute.name for attribute in attrs.fields(type(group))}
        for wrong in change.keys() - known:
            raise where.at(wrong).error(f"cannot be changed{nearest(wrong, known)}")
        read = read_table(type(group), {**_required(group), **change}, where)
        group = attrs.evolve(group, **{name: getattr(read, name) for name in change})
    return group


def _required(group: Group) -> dict[str, Any]:
    return {
        attribute.name: getattr(group, attribute.name)
        for attribute in attrs.fields(type(group))
        if attribute.default is attrs.NOTHING
    }


def _read_groups(cls: type[Group], tables: object, place: Place) -> Iterator[tuple[str, Group]]:
    if not isinstance(tables, Mapping):
        raise place.error("expected tables by name, such as [phones.front]")
    for name, table in tables.items():
        if not GROUP_NAME.fullmatch(name):
            raise place.at(name).error("a name has small letters, digits and dashes")
        yield name, read_table(cls, table, place.at(name))


def _read_stages(raw: Scenario, place: Place) -> tuple[Stage, ...]:
    if raw.stages and raw.duration is not None:
        raise place.at("duration").error("is the sum of the stages: leave it out")
    if not raw.stages:
        return (Stage(raw.duration or 10.0, "run"),)
    return tuple(
        attrs.evolve(stage, name=stage.name or f"stage {number + 1}")
        for number, stage in enumerate(
            read_table(Stage, table, place.at(f"stages[{number}]"))
            for number, table in enumerate(raw.stages)
        )
    )


def _check_groups(
    scenario: Scenario, groups: Mapping[str, Mapping[str, Group]], place: Place
) -> None:
    names = [name for kind in groups.values() for name in kind]
    for name in names:
        if names.count(name) > 1:
            raise place.error(f"two groups are named {name}")
    if not names and scenario.script is None:
        raise place.error("there is nobody in it: add a table such as [phones.front]")
    _check_watched(scenario, groups, place)
    _check_mentioned(scenario, names, place)


def _check_watched(
    scenario: Scenario, groups: Mapping[str, Mapping[str, Group]], place: Place
) -> None:
    for kind in ("viewers", "services", "hostiles"):
        for name, group in groups[kind].items():
            watched = getattr(group, "watch", None)
            if watched is not None and watched not in scenario.phones:
                where = place.at(f"{kind}.{name}.watch")
                hint = nearest(watched, scenario.phones) if scenario.phones else ""
                raise where.error(f"there is no group of phones named {watched!r}{hint}")


def _check_mentioned(scenario: Scenario, names: list[str], place: Place) -> None:
    for number, stage in enumerate(scenario.stages):
        where = place.at(f"stages[{number}]")
        if not isinstance(stage.change, Mapping):
            raise where.at("change").error("expected a table of groups")
        for key_, mentioned in (("cut", stage.cut), ("change", stage.change)):
            for name in mentioned:
                if name not in names:
                    raise where.at(key_).error(f"there is no group {name!r}{nearest(name, names)}")
