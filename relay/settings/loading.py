"""Loads settings: options win over RELAY_* variables, those over a TOML file, that over defaults.

A setting has the same name everywhere: `max_message_size = 1024` in the file,
RELAY_MAX_MESSAGE_SIZE in the environment, --max-message-size on the command line. An error names
the setting, what was expected, and where the value came from.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import msgspec
from attrs import frozen

from relay.errors import ConfigError
from relay.process.working_directory import working_directory
from relay.settings.conflicts import find_conflicts
from relay.settings.limits import LISTS
from relay.settings.settings import SETTING_TYPES, SETTINGS, Settings, expected, flag

VARIABLE_PREFIX = "RELAY_"
CONFIG_VARIABLE = "RELAY_CONFIG"
TOKEN_VARIABLE = "RELAY_TOKEN"  # noqa: S105 (the name of a variable)
SOURCE_VARIABLE = "RELAY_SOURCE"
NTFY_CREDENTIALS_VARIABLE = "RELAY_NTFY_CREDENTIALS"
MQTT_CREDENTIALS_VARIABLE = "RELAY_MQTT_CREDENTIALS"
NO_SETTINGS = (
    *(CONFIG_VARIABLE, TOKEN_VARIABLE, SOURCE_VARIABLE),
    *(NTFY_CREDENTIALS_VARIABLE, MQTT_CREDENTIALS_VARIABLE),
)
"""Variables that are not settings: the settings file, the token of `relay top` and of `relay
ingest`, what that reads, and what targets of `relay target add` are
logged in to with."""

# Kubernetes sets these in each container of a namespace with a service called relay.
_SERVICE_LINK = re.compile(
    r"RELAY_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_\w+)=.*|RELAY_PORT=\w+://.*"
)


@frozen
class Configuration:
    """The settings, and where each was set that is not a default."""

    settings: Settings
    sources: Mapping[str, str]
    """By the name of the setting: a file with its line, a variable, or an option."""


@frozen
class ConfigProblem:
    """An error in the settings; relay does not start with it."""

    message: str
    source: str | None = None
    """As in `Configuration`; None for settings that are in conflict."""
    settings: tuple[str, ...] = ()
    """The settings that it is about, or that were probably meant."""


def load(
    flags: Mapping[str, str | None] | None = None,
    *,
    config_file: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Configuration:
    """Load the settings; `flags` has the options of the command line, as they were typed.

    Raises `ConfigError` about the first problem.
    """
    configuration, problems = examine(flags, config_file=config_file, environment=environment)
    if not problems:
        return configuration
    several = len(problems) > 1
    hint = f"; `relay config check` shows all {len(problems)} problems" if several else ""
    raise ConfigError(f"{problems[0].message}{hint}")


def examine(
    flags: Mapping[str, str | None] | None = None,
    *,
    config_file: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[Configuration, list[ConfigProblem]]:
    """Load the settings and collect all problems; a wrong value leaves the setting as it was."""
    environment = os.environ if environment is None else environment
    settings = Settings()
    sources: dict[str, str] = {}
    problems: list[ConfigProblem] = []
    for found in (
        *_from_file(config_file or environment.get(CONFIG_VARIABLE)),
        *_from_environment(environment),
        *_from_flags(flags or {}),
    ):
        if isinstance(found, ConfigProblem):
            problems.append(found)
            continue
        try:
            settings = attrs.evolve(settings, **{found.name: found.convert()})
        except ConfigError as error:
            text = f"{error} ({found.source})"
            problems.append(ConfigProblem(text, found.source, (found.name,)))
        else:
            sources[found.name] = found.source
    # A setting that is missing because it is wrong or misspelt is not a second problem.
    wrong = {name for problem in problems for name in problem.settings}
    problems += [
        ConfigProblem(conflict.message, None, conflict.settings)
        for conflict in find_conflicts(settings)
        if wrong.isdisjoint(conflict.settings)
    ]
    return Configuration(settings, sources), problems


@frozen
class _Found:
    """A value of a setting, as it was found."""

    name: str
    value: Any
    source: str
    folder: Path | None = None
    """The folder of the file that the value comes from: values in a file have types, and relative
    paths start in that folder."""

    def convert(self) -> Any:
        wanted = SETTING_TYPES[self.name]
        typed = self.folder is not None
        try:
            if wanted == Path | None:
                path = Path(msgspec.convert(self.value, str)).expanduser()
                path = (self.folder or Path()) / path
                return path if path.is_absolute() else working_directory() / path
            value = self.value
            if not typed and wanted in LISTS:
                value = [part.strip() for part in value.split(",") if part.strip()]
            return msgspec.convert(value, wanted, strict=typed)
        except (msgspec.ValidationError, RuntimeError):  # RuntimeError: ~no-such-user
            secret = SETTINGS[self.name].metadata["secret"]
            got = "" if secret else f", not {self.value!r}"
            raise ConfigError(f"{self.name}: expected {expected(wanted)}{got}") from None


def _from_file(named: str | None) -> Iterator[_Found | ConfigProblem]:
    if not named:
        return
    path = Path(named)
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except OSError as error:
        yield _unread(named, str(error.strerror))
        return
    except (ValueError, RecursionError) as error:  # broken TOML, or not UTF-8
        yield _unread(named, str(error))
        return
    for name, value in table.items():
        source = f"{named}{_line_of(name, text)}"
        if name in SETTINGS:
            yield _Found(name, value, source, folder=path.parent)
        elif isinstance(value, dict):
            hint = "settings go at the top level of the file, not in a table"
            yield ConfigProblem(f"unknown setting {name} in {source}; {hint}", source)
        else:
            yield _unknown(name, {name: name for name in SETTINGS}, source, source)


def _unread(named: str, why: str) -> ConfigProblem:
    """The problem of a file that cannot be read; it may set any setting."""
    return ConfigProblem(f"cannot read the settings file {named}: {why}", named, tuple(SETTINGS))


def _line_of(name: str, text: str) -> str:
    """`:LINE` where a name is set in a TOML file; empty if that is not certain."""
    key = re.escape(name)
    set_there = re.compile(rf"""\s*\[?\s*(?:{key}|"{key}"|'{key}')\s*[=.\]]""")
    lines = [n for n, line in enumerate(text.splitlines(), 1) if set_there.match(line)]
    return f":{lines[0]}" if len(lines) == 1 else ""


def _from_environment(environment: Mapping[str, str]) -> Iterator[_Found | ConfigProblem]:
    names = {name.upper(): name for name in SETTINGS}
    for variable, text in sorted(environment.items()):
        if not variable.startswith(VARIABLE_PREFIX) or variable in NO_SETTINGS:
            continue
        suffix = variable.removeprefix(VARIABLE_PREFIX)
        if suffix in names:
            if text:  # many tools set a variable to "" for "not set"
                yield _Found(names[suffix], text, variable)
        elif not _SERVICE_LINK.fullmatch(f"{variable}={text}"):
            others = {name.removeprefix(VARIABLE_PREFIX): "" for name in NO_SETTINGS}
            yield _unknown(
                suffix, {**names, **others}, "the environment", variable, VARIABLE_PREFIX
            )


def _from_flags(flags: Mapping[str, str | None]) -> Iterator[_Found]:
    for name, text in flags.items():
        if text is not None:
            yield _Found(name, text, flag(name))


def _unknown(
    name: str, known: Mapping[str, str], where: str, source: str, prefix: str = ""
) -> ConfigProblem:
    """The problem of an unknown name; `known` has the settings by their names in that place."""
    by_case = {each.lower(): each for each in known}
    asked = name.lower().replace("-", "_")
    nearest = [by_case[each] for each in difflib.get_close_matches(asked, by_case, n=1)]
    hint = (
        f"did you mean {prefix}{nearest[0]}?"
        if nearest
        else "`relay config show` lists all settings"
    )
    meant = tuple(known[each] for each in nearest if known[each])
    return ConfigProblem(f"unknown setting {prefix}{name} in {where}; {hint}", source, meant)
