"""`relay top`: watch a relay in a terminal."""

from __future__ import annotations

import os
import re
import sys
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import click
from attrs import frozen

from relay.cli.grouped_help import GroupedCommand
from relay.errors import ConfigError
from relay.settings.loading import TOKEN_VARIABLE
from relay.settings.tokens import check_web_url

MAX_TOKEN_LENGTH = 8192


@frozen
class _Argument:
    """An argument, where `check_web_url` expects an attrs field."""

    name: str = "URL"


@click.command(cls=GroupedCommand)
@click.argument("url", default="http://localhost:3000")
@click.option(
    "--token-file", type=click.Path(path_type=Path), metavar="FILE",
    help="Read the token from this file instead of RELAY_TOKEN.",
)  # fmt: skip
@click.option(
    "--once", is_flag=True, help="Print once and exit; the default if the output is not a terminal."
)
@click.option(
    "--interval", type=click.FloatRange(0.5, 60), default=2.0, show_default=True,
    metavar="SECONDS", help="Time between updates.",
)  # fmt: skip
@click.option(
    "--nodes", type=click.Choice(["all"]), metavar="all",
    help="Show the streams and viewers of all relays that serve together with this one.",
)  # fmt: skip
def top(url: str, token_file: Path | None, once: bool, interval: float, nodes: str | None) -> None:
    """Monitor a running relay.

    Shows connections, streams, frame ages, drops, endings and services. Needs the token of a
    service with --operate, in RELAY_TOKEN or in a file: other users of the machine can see
    arguments. Press q or Ctrl-C to quit.

    Where several relays serve together, `node` says which one a stream comes `from`, and `to` how
    many others it goes. With --nodes all, it begins with the node that a line is of, and
    connections are named NODE/N; totals and services stay those of the relay at URL.

    \b
    Example:
      RELAY_TOKEN=$(relay token service desk --operate) relay top
      relay top https://relay.example.org --token-file /etc/relay/desk.token
    """
    import trio
    from rich.console import Console

    from relay.top.run import SNAPSHOT_WIDTH, show, show_once

    address, token = relay_url(url), read_token(token_file)
    on_terminal = sys.stdout.isatty()
    console = Console(
        width=None if on_terminal else SNAPSHOT_WIDTH, markup=False, highlight=False, emoji=False
    )
    if once or not on_terminal or console.is_dumb_terminal:
        trio.run(partial(show_once, address, token, console, all_nodes=nodes is not None))
    else:
        trio.run(partial(show, address, token, interval, console, all_nodes=nodes is not None))


def relay_url(url: str) -> str:
    """The URL of a relay without its last slash; `ConfigError`."""
    if "://" not in url:
        raise ConfigError("URL: expected a URL that begins with https:// or http://")
    check_web_url(None, _Argument(), url)
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        raise ConfigError("URL: expected the URL of a relay, such as https://relay.example.org")
    return url.rstrip("/")


def read_token(file: Path | None, scope: str = "--operate") -> str:
    """Read the token from a file or the environment; no `ConfigError` shows any of it. `scope` are
    the options that create such a token."""
    if file is None:
        found, where = os.environ.get(TOKEN_VARIABLE, "").strip(), TOKEN_VARIABLE
        if not found:
            raise ConfigError(
                f"set a token with {TOKEN_VARIABLE} or --token-file;"
                f" `relay token service NAME {scope}` creates one"
            )
    else:
        where = f"--token-file {file}"
        try:
            with file.open(encoding="utf-8") as opened:
                found = opened.read(MAX_TOKEN_LENGTH + 1).strip()
        except OSError as error:
            raise ConfigError(f"cannot read {where}: {error.strerror}") from None
        except ValueError:
            raise ConfigError(f"cannot read {where}: it is not a text file") from None
    if not re.fullmatch(rf"[\x21-\x7e]{{1,{MAX_TOKEN_LENGTH}}}", found):
        raise ConfigError(f"{where} does not contain exactly one token")
    return found
