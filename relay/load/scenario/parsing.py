"""Reads scenarios, and finds the mistakes in them before anything starts."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any, Literal

import attrs

from relay.load.measures.checks import Threshold, parse_threshold
from relay.load.measures.reconciliation.integrity import RENDITIONS
from relay.load.measures.stats import LAYER_PREFIX
from relay.load.scenario.groups import Group, HostileGroup, PhoneGroup, ServiceGroup, ViewerGroup
from relay.load.scenario.link_trace import link_names
from relay.load.scenario.scenario import (
    BACKGROUND_NEEDS,
    ONLY_TARGET,
    RESERVED_NAMES,
    Scenario,
    ScenarioTarget,
    Stage,
    changed,
    links,
)
from relay.load.scenario.schema import Place, ScenarioError, read_table
from relay.load.suggestions import suggestion

GROUP_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
NAME_RULE = "a name consists of lowercase letters, digits and dashes"

Kind = Literal["phones", "viewers", "services", "hostiles"]
KINDS: dict[Kind, type[Group]] = {
    "phones": PhoneGroup,
    "viewers": ViewerGroup,
    "services": ServiceGroup,
    "hostiles": HostileGroup,
}

NOT_LOAD = frozenset(
    {
        *("name", "check", "lateness", "abort_on_fail", "workers"),
        *("target", "targets", "tls", "tokens"),
    }
)
"""Keys that do not change what happens to a relay, but who sees it, where, and what is expected."""


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
