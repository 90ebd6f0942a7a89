"""A relay, live in a terminal. Floor 6."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

import click
from attrs import frozen

from relay.config import TOKEN_VARIABLE
from relay.errors import ConfigError
from relay.token_settings import check_web_url

LONGEST_TOKEN = 8192


@frozen
class _Named:
    name: str = "URL"


@click.command()
@click.argument("url", default="http://localhost:3000")
@click.option(
    "--token-file", type=click.Path(path_type=Path), metavar="FILE",
    help="Where the token is; without it, RELAY_TOKEN has it.",
)  # fmt: skip
@click.option("--once", is_flag=True, help="Print it once; so it is without a terminal, too.")
@click.option(
    "--interval", type=click.FloatRange(0.5, 60), default=2.0, show_default=True,
    metavar="SECONDS", help="Between two looks.",
)  # fmt: skip
def top(url: str, token_file: Path | None, once: bool, interval: float) -> None:
    """Watch a relay at work: connections, streams, ages, drops, endings, services.

    It takes a service token that may operate, in RELAY_TOKEN or in a file: what stands on a command
    line can be seen by everybody on the machine. q or Ctrl-C leaves.

    \b
    Example:
      RELAY_TOKEN=$(relay token service desk --operate) relay top
      relay top https://relay.example.org --token-file /etc/relay/desk.token
    """
    import trio
    from rich.console import Console

    from relay.top.run import WIDE, show, show_once

    address, token = _address(url), _token(token_file)
    on_terminal = sys.stdout.isatty()
    console = Console(
        width=None if on_terminal else WIDE, markup=False, highlight=False, emoji=False
    )
    if once or not on_terminal or console.is_dumb_terminal:
        trio.run(show_once, address, token, console)
    else:
        trio.run(show, address, token, interval, console)


def _address(url: str) -> str:
    check_web_url(None, _Named(), url)
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        raise ConfigError("URL: expected the address of a relay, such as https://relay.example.org")
    return url.rstrip("/")


def _token(file: Path | None) -> str:
    """The token, of which no message shows anything."""
    if file is None:
        found, where = os.environ.get(TOKEN_VARIABLE, "").strip(), TOKEN_VARIABLE
        if not found:
            raise ConfigError(
                f"a token is needed, in {TOKEN_VARIABLE} or --token-file;"
                " `relay token service NAME --operate` makes one"
            )
    else:
        where = f"--token-file {file}"
        try:
            with file.open(encoding="utf-8") as opened:
                found = opened.read(LONGEST_TOKEN + 1).strip()
        except OSError as error:
            raise ConfigError(f"cannot read {where}: {error.strerror}") from None
        except ValueError:
            raise ConfigError(f"cannot read {where}: it is no text") from None
    if not re.fullmatch(rf"[\x21-\x7e]{{1,{LONGEST_TOKEN}}}", found):
        raise ConfigError(f"{where} has no token in it, or more than one")
    return found
