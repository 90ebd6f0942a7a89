"""The command line. Floor 6.

Commands import what they run only when they run, so that `relay --help` is quick. What goes wrong
in a way that relay can explain is one line on stderr and exit code 2, never a traceback.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from relay.commands.access import grant, grants, revoke, token
from relay.commands.audit import audit
from relay.commands.database import db
from relay.commands.doctor import doctor
from relay.commands.options import configuration, settings_options
from relay.commands.settings import config_group
from relay.commands.top import top
from relay.commands.webhooks import webhook
from relay.errors import RelayError, StoreForbids, StoreUnavailable
from relay.load.commands import load
from relay.logs import configure_logging
from relay.readiness import tell_service_manager
from relay.settings import SETTINGS, Settings

MISUSED, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code of the process."""
    try:
        outcome = relay.main(arguments, prog_name="relay", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return MISUSED
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"; see `{context.command_path} --help`" if context else ""
        return complain(f"{error.format_message().rstrip('.')}{hint}")
    except (RelayError, BaseExceptionGroup, click.Abort, KeyboardInterrupt) as error:
        causes = list(_leaves(error))
        if any(isinstance(cause, click.Abort | KeyboardInterrupt) for cause in causes):
            return INTERRUPTED
        if not all(isinstance(cause, RelayError) for cause in causes):
            raise
        return complain(_said(causes[0]))
    return outcome if isinstance(outcome, int) else 0


def _said(error: BaseException) -> str:
    match error:
        case StoreUnavailable():
            return f"cannot reach the database: {error}"
        case StoreForbids():
            return f"the database says {error}; `relay doctor` tells which rights are missing"
        case _:
            return str(error)


def complain(text: str) -> int:
    click.echo(f"relay: {' '.join(text.split())}", err=True)
    return MISUSED


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """What went wrong, without the nurseries that it came through."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


@click.group(name="relay", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="relay", message="relay %(version)s")
def relay() -> None:
    """Live video over WebSockets: phones in, viewers out, alerts back.

    \b
    See it work:     relay demo
    Run it:          relay serve --bind 0.0.0.0:3000
    Is all well:     relay doctor
    Watch it work:   relay top
    Get a token:     relay token session --user ana@example.org
    Load it:         relay load smoke
    """


for command in (
    *(token, grant, revoke, grants, db, audit, webhook, load),
    *(config_group, doctor, top),
):
    relay.add_command(command)


@relay.command()
@settings_options(*SETTINGS)
def serve() -> None:
    """Run the relay.

    Each option is also a setting in the TOML file (max_message_size = 1048576) and a variable of
    the environment (RELAY_MAX_MESSAGE_SIZE), which is where passwords belong. An option wins over
    the environment, and that over the file.

    \b
    Example:
      relay serve --bind 0.0.0.0:3000
      RELAY_DATABASE_URL=postgresql://relay@db/app relay serve --config relay.toml
    """
    import trio

    settings = configuration().settings
    configure_logging(settings.log_level, settings.log_format)
    trio.run(_serve, settings)


async def _serve(settings: Settings) -> None:
    import trio

    from relay import app

    async with trio.open_nursery() as nursery:
        for url in await nursery.start(app.serve, settings):
            click.echo(f"relay listening on {url}")
        tell_service_manager()
        _collect_garbage_less_often()
        if all(re.match(r"127\.|::1$", address.host) for address in settings.addresses):
            click.echo(
                "relay: only this machine can connect; phones need --bind 0.0.0.0:3000", err=True
            )


def _collect_garbage_less_often() -> None:
    """Looking through everything for garbage holds up every frame, with a thousand connections for
    50 ms, and with the usual thresholds once a second while many come and go."""
    gc.collect()
    gc.freeze()  # what is here now stays to the end
    gc.set_threshold(5000, 5, 10)


@relay.command()
@click.option(
    "--seconds", type=click.FloatRange(min=0, min_open=True), metavar="N",
    help="End after this time; without it, Ctrl-C ends it.",
)  # fmt: skip
@click.option(
    "--video", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
    help="Play this instead of the film that comes along.",
)  # fmt: skip
@click.option("--bind", metavar="HOST:PORT", help="Where to listen.")
@click.option(
    "--data-dir", type=click.Path(path_type=Path), metavar="DIR",
    help="Keep the database here; without it, it goes away with the demo.",
)  # fmt: skip
def demo(
    seconds: float | None, video: Path | None, bind: str | None, data_dir: Path | None
) -> None:
    """See it work: a film, viewers, alerts.

    A phone plays a film through a relay of its own to a fast and to a slow viewer, and a service
    raises alerts.

    \b
    Example:
      relay demo --seconds 20
      relay demo --video film.mp4
    """
    import trio

    from relay.demo.stage import DemoOptions, run

    trio.run(run, DemoOptions(seconds, video, bind, data_dir))
