"""Options that several commands have: the settings, and times. Floor 6."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import click

from relay import config
from relay.config import Configuration, Problem
from relay.settings import SETTINGS, flag, placeholder

Command = TypeVar("Command", bound=Callable[..., Any])

DATABASE = ("database_url", "data_dir", "postgres_bin")
STORE = (*DATABASE, "auth_schema", "auth_user_table", "auth_session_table")


def settings_options(*names: str) -> Callable[[Command], Command]:
    """`--config` and the flags of these settings, for `configuration()` to put together."""

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            setting = SETTINGS[name]
            if isinstance(setting.default, bool):
                command = click.option(
                    f"{flag(name)}/{flag(f'no_{name}')}",
                    name,
                    default=None,
                    help=setting.metadata["about"],
                    callback=_keep_switch,
                    expose_value=False,
                )(command)
                continue
            default = f"  [default: {setting.default}]" if setting.default not in (None, ()) else ""
            command = click.option(
                flag(name),
                name,
                metavar=placeholder(name),
                help=setting.metadata["about"] + default,
                callback=_keep,
                expose_value=False,
            )(command)
        return click.option(
            "--config",
            metavar="FILE",
            help="A TOML file with settings.",
            callback=_keep,
            expose_value=False,
        )(command)

    return decorate


def _keep(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    context.ensure_object(dict)[parameter.name] = value


def _keep_switch(context: click.Context, parameter: click.Parameter, value: bool | None) -> None:
    _keep(context, parameter, None if value is None else str(value).lower())


def configuration() -> Configuration:
    """The settings as the current command got them."""
    return config.load(**_given())


def examined() -> tuple[Configuration, list[Problem]]:
    """The same, with all that is wrong with them."""
    return config.examine(**_given())


def _given() -> dict[str, Any]:
    flags = dict(click.get_current_context().ensure_object(dict))
    return {"config_file": flags.pop("config", None), "flags": flags}


def duration(
    _context: click.Context, _parameter: click.Parameter, text: str | None
) -> timedelta | None:
    """Reads the value of an option such as `--ttl 12h`."""
    if text is None:
        return None
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
    if (match := re.fullmatch(r"([1-9][0-9]{0,4})([smhd])", text)) is None:
        raise click.BadParameter(f"expected a time such as 90s, 30m, 12h or 7d, not {text!r}")
    return timedelta(**{units[match[2]]: int(match[1])})
