"""The commands of docs/clients.md are commands of relay."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from relay.cli.access import token_service
from relay.cli.ingest import ingest

PAGE = (Path(__file__).parents[3] / "docs" / "clients.md").read_text("utf-8")
COMMANDS = re.findall(r"^(?:ExecStart=\S*/)?relay (ingest|token service) (.*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("name", "arguments"), COMMANDS)
def test_a_command_of_the_page_can_be_pasted(name: str, arguments: str) -> None:
    command: click.Command = ingest if name == "ingest" else token_service
    given, _, _ = arguments.replace("%i", "porch").partition(">")  # as systemd does
    command.make_context(name, shlex.split(given, comments=True))


def test_the_page_has_commands() -> None:
    assert [name for name, _ in COMMANDS].count("ingest") == 3
