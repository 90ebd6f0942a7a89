"""A scenario: who takes part in a load test, when, and which checks must pass."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from string import ascii_lowercase
from typing import Any, Literal

import attrs
from attrs import field, frozen

from relay.load import units
from relay.load.measures.checks import FIGURE_PREFIXES, Threshold, parse_threshold
from relay.load.measures.reconciliation.integrity import RENDITIONS
from relay.load.measures.stats import LAYER_PREFIX, LinkCapacity
from relay.load.scenario.groups import (
    DURATION,
    Group,
    HostileGroup,
    Network,
    PhoneGroup,
    ServiceGroup,
    ViewerGroup,
)
from relay.load.scenario.link_trace import link_names
from relay.load.scenario.schema import (
    Place,
    ScenarioError,
    key,
    list_of,
    nested,
    read_table,
    switch,
    text,
    whole,
)
from relay.load.suggestions import suggestion
from relay.process.working_directory import working_directory

GROUP_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
ACTOR_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
"""Of the actors of a script, which stand in reports and tables as groups do."""
BACKGROUND_NEEDS = "must be 2 or more, since a group is in the background"
"""Said of the number of processes."""
NAME_RULE = "a name consists of lowercase letters, digits and dashes"
ONLY_TARGET = ""
"""The name of a target that is the only one."""
RESERVED_NAMES = FIGURE_PREFIXES | {"generator", "ledger"}
"""Names that mean something else in checks and in the statistics."""

NOT_LOAD = frozenset(
    {
        *("name", "check", "lateness", "abort_on_fail", "workers"),
        *("target", "targets", "tls", "tokens"),
    }
)
"""Keys that do not change what happens to a relay, but who sees it, where, and what is expected."""


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


Kind = Literal["phones", "viewers", "services", "hostiles"]
KINDS: dict[Kind, type[Group]] = {
    "phones": PhoneGroup,
    "viewers": ViewerGroup,
    "services": ServiceGroup,
    "hostiles": HostileGroup,
}
CHANGEABLE = {"count", "fps", "rate", "network", "link", "arrival"}


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
    """Read a scenario; relative paths in it start from `folder`. `ScenarioError`."""
    try:
        table = tomllib.loads(source)
    except tomllib.TOMLDecodeError as problem:
        raise ScenarioError(file, f"is not TOML: {problem}") from None
    except (ValueError, RecursionError):
        raise ScenarioError(file, "has a number that is too long, or too deep a nesting") from None
    place = Place(file)
    raw = read_table(Scenario, table, place)
    groups: dict[str, Any] = {}
    for kind, cls in KINDS.items():
        groups[kind] = dict(_read_groups(cls, getattr(raw, kind), place.at(kind)))
    if "target" in table and "targets" in table:
        raise place.at("targets").error("use one of target and targets")
    scenario = attrs.evolve(
        raw,
        **groups,
        targets=_read_targets(raw, place),
        name=raw.name or Path(file).stem,
        stages=_read_stages(raw, place),
        folder=folder,
        load=digest_of_load(table),
    )
    _check_groups(scenario, groups, place)
    check_targets(scenario, place)
    for number, stage in enumerate(scenario.stages):
        for name in stage.change:
            changed(scenario, number, name, place)  # finds errors before anything starts
    places = [place.at(f"check[{number}]") for number in range(len(raw.check))]
    return with_checks(scenario, raw.check, places)


def with_checks(scenario: Scenario, lines: Sequence[str], places: Sequence[Place]) -> Scenario:
    """The scenario with these checks in place of its own; `ScenarioError`.

    `places` says where each line is.
    """
    checks = []
    for line, place in zip(lines, places, strict=True):
        try:
            check = parse_threshold(
                line,
                scenario.groups,
                scripted=scenario.script is not None,
                stages=[stage.name for stage in scenario.stages],
            )
            _check_wire(check, scenario)
            _check_figure_of_layer(check, scenario)
            checks.append(check)
        except ValueError as problem:
            raise place.error(str(problem)) from None
    return attrs.evolve(scenario, check=tuple(lines), checks=tuple(checks))


def digest_of_load(table: Mapping[str, Any]) -> str:
    """Twelve digits that are the same for scenarios with the same groups, stages and seed."""
    load = {name: value for name, value in table.items() if name not in NOT_LOAD}
    encoded = json.dumps(load, sort_keys=True, default=str).encode()
    return hashlib.sha256(encoded).hexdigest()[:12]


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


def _check_wire(check: Threshold, scenario: Scenario) -> None:
    if check.unit != "wire" or check.group not in scenario.groups:
        return
    bandwidth = links(scenario, check.stage)[check.group].bandwidth
    if not bandwidth:
        when = "" if check.stage is None else f" during {check.stage}"
        raise ValueError(f"{check.group} has no network.bandwidth{when}, so it has no wire time")


def _check_figure_of_layer(check: Threshold, scenario: Scenario) -> None:
    if not check.figure.startswith(LAYER_PREFIX) or scenario.script is not None:
        return
    layer = check.figure.removeprefix(LAYER_PREFIX)
    groups = [each for name, each in scenario.viewers.items() if check.group in {None, name}]
    if check.group is not None and not groups:
        raise ValueError(f"{check.group} shows no pictures, so it has no layers")
    watched = [scenario.phones[viewers.watch] for viewers in groups if viewers.watch is not None]
    known = {each for phones in watched for each in _layers_of(phones)}
    if layer not in known:
        raise ValueError(f"there is no layer {layer!r}{suggestion(layer, known)}")


def _layers_of(phones: PhoneGroup) -> tuple[str, ...]:
    """The layers in which pictures may come: those of the phones, or else those of the relay."""
    return phones.layer_ids or RENDITIONS


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


def _read_groups(cls: type[Group], tables: object, place: Place) -> Iterator[tuple[str, Group]]:
    if not isinstance(tables, Mapping):
        raise place.error("expected tables by name, such as [phones.front]")
    for name, table in tables.items():
        if not GROUP_NAME.fullmatch(name):
            raise place.at(name).error(NAME_RULE)
        if name in RESERVED_NAMES:
            raise place.at(name).error("is the name of a figure: choose another name")
        yield name, read_table(cls, table, place.at(name))


def with_targets(scenario: Scenario, given: Sequence[str]) -> Scenario:
    """The scenario with these targets, `[NAME=]URL`, in place of its own; `ScenarioError`.

    Those without a name get those of the scenario's targets, in order, or else letters.
    """
    place = Place("--target")
    free = [name for name in scenario.targets_by_name if name != ONLY_TARGET]
    free += [letter for letter in ascii_lowercase if letter not in free]
    ledger = scenario.checks_ledger if scenario.targets_by_name else None
    targets: dict[str, ScenarioTarget] = {}
    for each in given:
        name, equals, url = each.partition("=")
        if not equals or "/" in name:
            name, url = next((other for other in free if other not in targets), ""), each
        if not GROUP_NAME.fullmatch(name):
            raise place.at(each).error(NAME_RULE)
        if name in targets:
            raise place.error(f"two targets are named {name}")
        targets[name] = ScenarioTarget(url=url, ledger=ledger)
    if len(given) == 1 and "=" not in given[0]:
        found = attrs.evolve(scenario, target=targets.popitem()[1], targets={})
    else:
        found = attrs.evolve(scenario, targets=targets)
    check_targets(found, place)
    return found


def _read_targets(raw: Scenario, place: Place) -> dict[str, ScenarioTarget]:
    where = place.at("targets")
    if not isinstance(raw.targets, Mapping):
        raise where.error("expected tables by name, such as [targets.a]")
    for name in raw.targets:
        if not GROUP_NAME.fullmatch(name):
            raise where.at(name).error(NAME_RULE)
    targets = {
        name: read_table(ScenarioTarget, table, where.at(name))
        for name, table in raw.targets.items()
    }
    if len({each.start for each in targets.values()}) > 1:
        raise where.error(
            "use start = true for all of them, or url for all: one database is theirs"
        )
    return targets


def check_targets(scenario: Scenario, place: Place) -> None:
    """Refuse names of targets that there are not; `ScenarioError`."""
    targets = scenario.targets_by_name
    for kind in KINDS:
        for name, group in getattr(scenario, kind).items():
            if group.target is not None:
                _find_target(group.target, targets, place.at(f"{kind}.{name}.target"))
    for number, stage in enumerate(scenario.stages):
        for what in ("drain", "restart"):
            where = place.at(f"stages[{number}].{what}")
            for name in getattr(stage, what):
                if not _find_target(name, targets, where).start:
                    raise where.error(f"{name} is not started by this run, so it cannot end it")


def _find_target(name: str, targets: Mapping[str, ScenarioTarget], where: Place) -> ScenarioTarget:
    found = targets.get(name)
    if found is not None:
        return found
    if ONLY_TARGET in targets:
        raise where.error("there is one target, without a name: add tables such as [targets.a]")
    raise where.error(f"there is no target named {name!r}{suggestion(name, targets)}")


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
        raise place.error("it has no actors: add a table such as [phones.front]")
    if scenario.background and scenario.workers == 1:
        raise place.at("workers").error(BACKGROUND_NEEDS)
    _check_watched(scenario, groups, place)
    _check_mentioned(scenario, names, place)
    _check_link_names(scenario, groups, place)


def _check_link_names(
    scenario: Scenario, groups: Mapping[str, Mapping[str, Group]], place: Place
) -> None:
    places = {name: f"{kind}.{name}" for kind, of in groups.items() for name in of}
    for name, where in places.items():
        for stage in range(-1, len(scenario.stages)):
            link = changed(scenario, stage, name, place).link
            if link is not None and link.name is not None and link.name not in link_names():
                at = place.at(where if stage < 0 else f"stages[{stage}].change.{name}").at("link")
                hint = suggestion(link.name, link_names())
                raise at.error(f"there is no link named {link.name!r}{hint}")


def _check_watched(
    scenario: Scenario, groups: Mapping[str, Mapping[str, Group]], place: Place
) -> None:
    for kind in ("viewers", "services", "hostiles"):
        for name, group in groups[kind].items():
            watched = getattr(group, "watch", None)
            if watched is not None and watched not in scenario.phones:
                where = place.at(f"{kind}.{name}.watch")
                hint = suggestion(watched, scenario.phones) if scenario.phones else ""
                raise where.error(f"there is no group of phones named {watched!r}{hint}")
            wanted = getattr(group, "layer", None)
            if wanted is not None and watched is None:
                raise place.at(f"{kind}.{name}.layer").error("needs watch")
            if watched is not None and wanted is not None:
                where = place.at(f"{kind}.{name}.layer")
                _check_layer(wanted, scenario.phones[watched], where)


def _check_layer(layer: str, phones: PhoneGroup, where: Place) -> None:
    """Refuse a layer that neither the phones nor the relay would make."""
    known = _layers_of(phones)
    if layer not in known:
        raise where.error(f"there is no layer {layer!r}{suggestion(layer, known)}")


def _check_mentioned(scenario: Scenario, names: list[str], place: Place) -> None:
    for number, stage in enumerate(scenario.stages):
        where = place.at(f"stages[{number}]")
        if not isinstance(stage.change, Mapping):
            raise where.at("change").error("expected a table of groups")
        for key_, mentioned in (("cut", stage.cut), ("change", stage.change)):
            for name in mentioned:
                if name not in names:
                    raise where.at(key_).error(
                        f"there is no group {name!r}{suggestion(name, names)}"
                    )
