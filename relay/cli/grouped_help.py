"""Help that lists options and commands by subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import click

OPTION_WIDTH = 30
"""Columns; the text of a longer option begins on the next line."""
UNBREAKABLE = "\xa0"
"""A space at which help does not break a line."""


class GroupedOption(click.Option):
    """An option that help lists below the heading `group`."""

    def __init__(self, *arguments: Any, group: str, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help lists options by group, those without one first."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and not isinstance(parameter, click.Argument):
                group = parameter.group if isinstance(parameter, GroupedOption) else "Options"
                groups.setdefault(group, []).append(record)
        width = OPTION_WIDTH if len(groups) > 1 else 0  # the same column in all groups
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in records])

    def get_help(self, ctx: click.Context) -> str:
        return super().get_help(ctx).replace(UNBREAKABLE, " ")


class GroupedGroup(click.Group):
    """A group of such commands, which help lists in the order in which a beginner meets them."""

    command_class = GroupedCommand

    def __init__(
        self,
        *arguments: Any,
        sections: Mapping[str, Sequence[str]] | None = None,
        **settings: Any,
    ) -> None:
        """`sections` has the names of the commands below each heading; without it, all stand below
        one, in the order in which they were added."""
        super().__init__(*arguments, **settings)
        self.sections = sections

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click passes it)
        return list(self.commands)

    def format_commands(
        self,
        ctx: click.Context,
        formatter: click.HelpFormatter,
    ) -> None:
        listed = self.list_commands(ctx)
        sections = {"Commands": listed} if self.sections is None else self.sections
        width = max(map(len, listed))  # the same column in all sections
        limit = formatter.width - 6 - width
        for title, names in sections.items():
            commands = [self.get_command(ctx, name) for name in names]
            with formatter.section(title):
                formatter.write_dl(
                    [
                        (name.ljust(width), command.get_short_help_str(limit))
                        for name, command in zip(names, commands, strict=True)
                        if command is not None
                    ]
                )


class LazyGroup(GroupedGroup):
    """A group that imports a command when it is asked for, so that none loads what others need."""

    def __init__(self, *arguments: Any, places: Mapping[str, str], **settings: Any) -> None:
        """`places` says where commands are, by their names: `module:attribute`."""
        super().__init__(*arguments, **settings)
        self._places = places
        for name in places:  # click suggests these in place of an unknown one
            self.add_command(click.Command(name))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = self._places.get(cmd_name)
        if place is None:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = place.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command
