"""A scenario: who takes part in a load test, when, and which checks must pass."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
from attrs import field, frozen

from relay.load import units
from relay.load.measures.checks import FIGURE_PREFIXES, Threshold
from relay.load.measures.stats import LinkCapacity
from relay.load.scenario.groups import DURATION, Group, HostileGroup, Network
from relay.load.scenario.schema import Place, key, list_of, nested, read_table, switch, text, whole
from relay.load.suggestions import suggestion
from relay.process.working_directory import working_directory

ACTOR_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
"""Of the actors of a script, which stand in reports and tables as groups do."""
BACKGROUND_NEEDS = "must be 2 or more, since a group is in the background"
"""Said of the number of processes."""
CHANGEABLE = {"count", "fps", "rate", "network", "link", "arrival"}
ONLY_TARGET = ""
"""The name of a target that is the only one."""
RESERVED_NAMES = FIGURE_PREFIXES | {"generator", "ledger"}
"""Names that mean something else in checks and in the statistics."""


@frozen
class ScenarioTarget:
    start: bool = key(switch, "true or false", default=False)
    """Start a relay for the run, with a database that is deleted with it."""
    url: str | None = key(text, "an address such as ws://localhost:3000", None)
    ledger: bool | None = key(switch, "true or false", None)
    """Compare the relay's own totals with the clients'; only if nobody else uses the relay."""
    settings: tuple[str, ...] = key(list_of(text), 'a list such as ["--auth-timeout", "5"]', ())
    """Options of `relay serve` for the relay that is started."""

    def __attrs_post_init__(self) -> None:
        if self.start == (self.url is not None):
            raise ValueError("use one of start = true and url")
        if self.settings and not self.start:
            raise ValueError("settings needs start = true")

    @property
    def checks_ledger(self) -> bool:
        return self.start if self.ledger is None else self.ledger


@frozen
class ScenarioTls:
    """How the certificate of a `wss://` target is verified."""

    ca: str | None = key(text, "the name of a file with certificates", None)
    """Trusted in addition to those of the system."""
    insecure: bool = key(switch, "true or false", default=False)
    """Accept any certificate."""

    def __attrs_post_init__(self) -> None:
        if self.insecure and self.ca is not None:
            raise ValueError("use one of ca and insecure")


def _command(value: object) -> tuple[str, ...]:
    found: tuple[str, ...] = list_of(text)(value)
    if not found:
        raise ValueError
    return found


@frozen
class ScenarioTokens:
    """Where tokens come from; by default they are made in the database of the started relay."""

    file: str | None = key(text, "the name of a file with a token on each line", None)
    command: tuple[str, ...] | None = key(_command, "a list: a program and arguments", None)
    service_file: str | None = key(text, "the name of a file with service tokens", None)
    service_command: tuple[str, ...] | None = key(_command, "a list: a program and arguments", None)
    operator_file: str | None = key(text, "the name of a file with an operator's token", None)
    """A service that operates: with it, the run reads what each node counts for each stream."""
    data_dir: str | None = key(text, "the data folder of a relay on this machine", None)
    sessions: int = key(whole(1, 10_000), "a whole number, 1 to 10000", 1)
    """Number of sessions to make."""
    users: int = key(whole(1, 10_000), "a whole number, 1 to 10000", 1)
    """Number of users that they belong to, in turn."""
    ttl: float = key(units.positive_duration, DURATION, 7 * 86400.0)

    def __attrs_post_init__(self) -> None:
        if sum(each is not None for each in (self.file, self.command, self.data_dir)) > 1:
            raise ValueError("use one of file, command and data_dir")
        if self.users > self.sessions:
            raise ValueError("sessions must not be fewer than users")


@frozen
class Stage:
    """A part of the run, from whose start on groups are different."""

    duration: float = key(units.positive_duration, DURATION)
    name: str = key(text, "a name", "")
    cut: tuple[str, ...] = key(list_of(text), "a list of groups", ())
    """Groups whose connections are all cut when it starts."""
    drain: tuple[str, ...] = key(list_of(text), "a list of targets", ())
    """Targets that were started for the run, and that are drained and end when it starts."""
    restart: tuple[str, ...] = key(list_of(text), "a list of targets", ())
    """Likewise, but they are started again, at the same address."""
    change: Mapping[str, Any] = key(lambda value: value, "a table of groups", factory=dict)


def _lateness(value: object) -> float | None:
    return None if value == "any" else units.positive_duration(value)


@frozen(kw_only=True)
class Scenario:
    name: str = key(text, "a name", "")
    duration: float | None = key(units.positive_duration, DURATION, None)
    seed: int = key(whole(0, 1 << 31), "a whole number", 1)
    workers: int = key(whole(1, 64), "a whole number, 1 to 64", 1)
    grace: float = key(units.duration, DURATION, 1.0)
    """Seconds after the last frame for what is still in flight."""
    lateness: float | None = key(_lateness, f'{DURATION}, or "any"', 0.1)
    """Maximum p99 of the generator's own lateness, in seconds; None for any."""
    abort_on_fail: bool = key(switch, "true or false", default=False)
    script: str | None = key(text, "the name of a Python file", None)
    check: tuple[str, ...] = key(list_of(text), "a list of checks", ())
    target: ScenarioTarget = nested(ScenarioTarget, ScenarioTarget(start=True))
    targets: Mapping[str, Any] = key(lambda value: value, "tables by name", factory=dict)
    """In place of `target`: several relays that use one database."""
    tls: ScenarioTls = nested(ScenarioTls, ScenarioTls())
    tokens: ScenarioTokens = nested(ScenarioTokens, ScenarioTokens())
    phones: Mapping[str, Any] = key(lambda value: value, "tables by name", factory=dict)
    viewers: Mapping[str, Any] = key(lambda value: value, "tables by name", factory=dict)
    services: Mapping[str, Any] = key(lambda value: value, "tables by name", factory=dict)
    hostiles: Mapping[str, Any] = key(lambda value: value, "tables by name", factory=dict)
    stages: tuple[Any, ...] = key(list_of(lambda value: value), "an array of tables", ())
    checks: tuple[Threshold, ...] = field(default=(), init=True)
    folder: Path = field(factory=working_directory)
    """The folder that relative paths start from."""
    load: str = field(default="")
    """A digest of what it lets happen; see `digest_of_load`."""

    @property
    def groups(self) -> dict[str, Group]:
        return {**self.phones, **self.viewers, **self.services, **self.hostiles}

    @property
    def targets_by_name(self) -> dict[str, ScenarioTarget]:
        """All targets; the name of a single one is empty."""
        return dict(self.targets) or {ONLY_TARGET: self.target}

    @property
    def background(self) -> frozenset[str]:
        """The groups that the last worker runs, if there are several."""
        return frozenset(name for name, group in self.groups.items() if group.background)

    @property
    def checks_ledger(self) -> bool:
        return all(each.checks_ledger for each in self.targets_by_name.values())

    @property
    def expects_logins(self) -> bool:
        """Whether somebody other than hostiles takes part."""
        return any(not isinstance(group, HostileGroup) for group in self.groups.values())

    @property
    def length(self) -> float:
        """Seconds from the start to the last frame."""
        return sum(float(stage.duration) for stage in self.stages)

    def path(self, name: str) -> Path:
        path = Path(name)
        with suppress(RuntimeError):  # there is no user with the name after "~"
            path = path.expanduser()
        return self.folder / path


def links(scenario: Scenario, stage: str | None = None) -> dict[str, LinkCapacity]:
    """The network capacity of each group at the start, or during a stage."""
    number = _number_of(scenario, stage)
    networks = {name: changed(scenario, number, name).network for name in scenario.groups}
    return {
        name: LinkCapacity(network.bandwidth, network.delay) for name, network in networks.items()
    }


def _number_of(scenario: Scenario, stage: str | None) -> int:
    """The number of a stage; -1 before the changes of the first."""
    return next((n for n, each in enumerate(scenario.stages) if each.name == stage), -1)


def changed(scenario: Scenario, stage: int, name: str, place: Place | None = None) -> Group:
    """A group as it is after the changes of a stage."""
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
            raise where.at(wrong).error(f"cannot be changed{suggestion(wrong, known)}")
        read = read_table(type(group), {**_required(group), **change}, where)
        given = {name: getattr(read, name) for name in change}
        if "link" in given or "network" in given:  # one takes the place of the other
            given = {"network": Network(), "link": None} | given
        group = attrs.evolve(group, **given)
    return group


def _required(group: Group) -> dict[str, Any]:
    return {
        attribute.name: getattr(group, attribute.name)
        for attribute in attrs.fields(type(group))
        if attribute.default is attrs.NOTHING
    }
