"""Help that lists options and commands by subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        ctx: click.Context,  # noqa: ARG002 (click passes it)
        formatter: click.HelpFormatter,
    ) -> None:
        sections = {"Commands": list(self.commands)} if self.sections is None else self.sections
        width = max(map(len, self.commands))  # the same column in all sections
        limit = formatter.width - 6 - width
        for title, names in sections.items():
            with formatter.section(title):
                formatter.write_dl(
                    [
                        (name.ljust(width), self.commands[name].get_short_help_str(limit))
                        for name in names
                    ]
                )
