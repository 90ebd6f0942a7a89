"""Where settings come from: flags over RELAY_* environment over a TOML file over defaults. Floor 0.

The same flat names everywhere: `max_message_size = 1024` in the file, RELAY_MAX_MESSAGE_SIZE in the
environment, --max-message-size on the command line. Whatever is wrong is a ConfigError that names
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
from relay.limit_settings import LISTS
from relay.settings import SETTINGS, TYPES, Settings, clashes, expected, flag

PREFIX = "RELAY_"
CONFIG_VARIABLE = "RELAY_CONFIG"
TOKEN_VARIABLE = "RELAY_TOKEN"  # noqa: S105 (the name of one)
NO_SETTINGS = (CONFIG_VARIABLE, TOKEN_VARIABLE)
"""Variables that say something else: the settings file, and the token of `relay top`."""

# Kubernetes puts these into every container that runs beside a service called relay.
_SERVICE_LINK = re.compile(
    r"RELAY_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_\w+)=.*|RELAY_PORT=\w+://.*"
)


@frozen
class Configuration:
    """The settings, and for each that is not its default, where it was set."""

    settings: Settings
    sources: Mapping[str, str]
    """A file with the line, a variable, or an option."""


@frozen
class Problem:
    """Something that relay does not start with."""

    message: str
    source: str | None = None
    """As in `Configuration`; None for settings that do not go together."""
    settings: tuple[str, ...] = ()
    """Those that it is about, or that may be meant."""


def load(
    flags: Mapping[str, str | None] | None = None,
    *,
    config_file: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Configuration:
    """Put the settings together; `flags` holds those of the command line as they were typed.

    `ConfigError` when something is wrong.
    """
    configuration, problems = examine(flags, config_file=config_file, environment=environment)
    if not problems:
        return configuration
    more = len(problems) - 1
    hint = f"; there is more: `relay config check` shows all {more + 1} problems" if more else ""
    raise ConfigError(f"{problems[0].message}{hint}")


def examine(
    flags: Mapping[str, str | None] | None = None,
    *,
    config_file: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[Configuration, list[Problem]]:
    """As `load`, with all that is wrong; settings that are wrong keep the value of before."""
    environment = os.environ if environment is None else environment
    settings = Settings()
    sources: dict[str, str] = {}
    problems: list[Problem] = []
    for found in (
        *_from_file(config_file or environment.get(CONFIG_VARIABLE)),
        *_from_environment(environment),
        *_from_flags(flags or {}),
    ):
        if isinstance(found, Problem):
            problems.append(found)
            continue
        try:
            settings = attrs.evolve(settings, **{found.name: found.convert()})
        except ConfigError as error:
            text = f"{error} ({found.source})"
            problems.append(Problem(text, found.source, (found.name,)))
        else:
            sources[found.name] = found.source
    # What is missing because it is wrong or misspelt is no second problem.
    doubtful = {name for problem in problems for name in problem.settings}
    problems += [
        Problem(clash.message, None, clash.settings)
        for clash in clashes(settings)
        if doubtful.isdisjoint(clash.settings)
    ]
    return Configuration(settings, sources), problems


@frozen
class _Found:
    """A value for a setting, as it was found."""

    name: str
    value: Any
    source: str
    folder: Path | None = None
    """Where a relative path starts, when the value comes from a file, which has types."""

    def convert(self) -> Any:
        wanted = TYPES[self.name]
        typed = self.folder is not None
        try:
            if wanted == Path | None:
                path = Path(msgspec.convert(self.value, str)).expanduser()
                return Path.cwd() / (self.folder or "") / path
            value = self.value
            if not typed and wanted in LISTS:
                value = [part.strip() for part in value.split(",") if part.strip()]
            return msgspec.convert(value, wanted, strict=typed)
        except (msgspec.ValidationError, RuntimeError):  # the latter: ~nobody-of-this-name
            secret = SETTINGS[self.name].metadata["secret"]
            got = "" if secret else f", not {self.value!r}"
            raise ConfigError(f"{self.name}: expected {expected(wanted)}{got}") from None


def _from_file(named: str | None) -> Iterator[_Found | Problem]:
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
            hint = "it is a table, and settings stand in none, at the top of the file"
            yield Problem(f"unknown setting {name} in {source}; {hint}", source)
        else:
            yield _unknown(name, {name: name for name in SETTINGS}, source, source)


def _unread(named: str, why: str) -> Problem:
    """Any setting may stand in there."""
    return Problem(f"cannot read the settings file {named}: {why}", named, tuple(SETTINGS))


def _line_of(name: str, text: str) -> str:
    """`:LINE` where a name is set in a TOML file; nothing where that is not plain to see."""
    key = re.escape(name)
    set_there = re.compile(rf"""\s*\[?\s*(?:{key}|"{key}"|'{key}')\s*[=.\]]""")
    lines = [n for n, line in enumerate(text.splitlines(), 1) if set_there.match(line)]
    return f":{lines[0]}" if len(lines) == 1 else ""


def _from_environment(environment: Mapping[str, str]) -> Iterator[_Found | Problem]:
    names = {name.upper(): name for name in SETTINGS}
    for variable, text in sorted(environment.items()):
        if not variable.startswith(PREFIX) or variable in NO_SETTINGS:
            continue
        suffix = variable.removeprefix(PREFIX)
        if suffix in names:
            if text:  # an empty variable is how many tools say "not set"
                yield _Found(names[suffix], text, variable)
        elif not _SERVICE_LINK.fullmatch(f"{variable}={text}"):
            others = {name.removeprefix(PREFIX): "" for name in NO_SETTINGS}
            yield _unknown(suffix, {**names, **others}, "the environment", variable, PREFIX)


def _from_flags(flags: Mapping[str, str | None]) -> Iterator[_Found]:
    for name, text in flags.items():
        if text is not None:
            yield _Found(name, text, flag(name))


def _unknown(
    name: str, known: Mapping[str, str], where: str, source: str, prefix: str = ""
) -> Problem:
    """A name that is none; `known` has the settings by how they are called there."""
    by_case = {each.lower(): each for each in known}
    asked = name.lower().replace("-", "_")
    nearest = [by_case[each] for each in difflib.get_close_matches(asked, by_case, n=1)]
    hint = f"did you mean {prefix}{nearest[0]}?" if nearest else "`relay config show` lists all"
    meant = tuple(known[each] for each in nearest if known[each])
    return Problem(f"unknown setting {prefix}{name} in {where}; {hint}", source, meant)
