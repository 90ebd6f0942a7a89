"""Options that several commands share: the settings, and times."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import click

from relay.cli.grouped_help import UNBREAKABLE, GroupedOption
from relay.settings import loading
from relay.settings.groups import GROUP_OF
from relay.settings.loading import ConfigProblem, Configuration
from relay.settings.settings import SETTINGS, flag, placeholder

Command = TypeVar("Command", bound=Callable[..., Any])

DATABASE_SETTINGS = ("database_url", "data_dir", "postgres_bin")
STORE_SETTINGS = (
    *DATABASE_SETTINGS,
    "auth_schema",
    "auth_user_table",
    "auth_user_columns",
    "auth_session_table",
    "auth_session_columns",
    "auth_session_url",
    "auth_token_storage",
    "auth_time_zone",
)


def settings_options(*names: str) -> Callable[[Command], Command]:
    """Add `--config` and the options of these settings, which `configuration()` loads."""

    def decorate(command: Command) -> Command:
        # Each decorator adds its option before those that are there.
        for name in sorted(names, key=list(GROUP_OF).index, reverse=True):
            setting = SETTINGS[name]
            is_switch = isinstance(setting.default, bool)
            command = click.option(
                f"{flag(name)}/{flag(f'no_{name}')}" if is_switch else flag(name),
                name,
                cls=GroupedOption,
                group=GROUP_OF[name],
                default=None,
                metavar=None if is_switch else placeholder(name),
                help=f"{setting.metadata['about']}.{_shown_default(setting.default)}",
                callback=_keep_switch if is_switch else _keep,
                expose_value=False,
            )(command)
        return click.option(
            "--config",
            metavar="FILE",
            help="Read settings from this TOML file.",
            callback=_keep,
            expose_value=False,
        )(command)

    return decorate


def _shown_default(default: Any) -> str:
    if default in (None, (), False):
        return ""
    text = "on" if default is True else f"{default:g}" if isinstance(default, float) else default
    return f"  [default:{UNBREAKABLE}{text}]"


def _keep(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    context.ensure_object(dict)[parameter.name] = value


def _keep_switch(context: click.Context, parameter: click.Parameter, value: bool | None) -> None:
    _keep(context, parameter, None if value is None else str(value).lower())


def configuration() -> Configuration:
    """The settings that the current command was given; `ConfigError` if one is wrong."""
    return loading.load(**_given())


def examined() -> tuple[Configuration, list[ConfigProblem]]:
    """The same settings with all their problems."""
    return loading.examine(**_given())


def _given() -> dict[str, Any]:
    flags = dict(click.get_current_context().ensure_object(dict))
    return {"config_file": flags.pop("config", None), "flags": flags}


def duration(
    _context: click.Context, _parameter: click.Parameter, text: str | None
) -> timedelta | None:
    """Parse the value of an option such as `--ttl 12h`."""
    if text is None:
        return None
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
    if (match := re.fullmatch(r"([1-9][0-9]{0,4})([smhd])", text)) is None:
        raise click.BadParameter(f"expected a time such as 90s, 30m, 12h or 7d, not {text!r}")
    return timedelta(**{units[match[2]]: int(match[1])})
