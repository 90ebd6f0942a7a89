"""The command line.

A command is imported when it is asked for, and imports what it needs when it runs, so that each
starts quickly, and `relay serve` holds no other. An error that relay can explain is one line on
stderr and exit code 2, never a traceback.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import click

from relay import __version__
from relay.cli.grouped_help import LazyGroup
from relay.cli.options import configuration, settings_options
from relay.concurrency.exception_groups import leaves
from relay.errors import RelayError, StoreForbids, StoreLacks, StoreUnavailable
from relay.logs.setup import configure_logging
from relay.process.first_process import end_on_sigterm_if_first
from relay.process.systemd import notify_service_manager
from relay.settings.settings import SETTINGS, Settings

EXIT_USAGE, EXIT_INTERRUPTED = 2, 130
NUMBERS = {
    "integer range": "a whole number",
    "float range": "a number",
}
"""Kinds of numbers as click calls them, and in plain words."""
MAX_HELP_WIDTH = 100
"""Columns; help is as wide as the terminal, up to this."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code of the process."""
    end_on_sigterm_if_first()
    try:
        outcome = relay.main(arguments, prog_name="relay", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return EXIT_USAGE
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        text = error.format_message().rstrip(".")
        joint = " See" if text.endswith("?") else "; see"
        hint = f"{joint} `{context.command_path} --help`" if context else ""
        for kind, plain in NUMBERS.items():
            text = text.replace(f"is not a valid {kind}", f"is not {plain}")
        return complain(f"{text}{hint}")
    except (RelayError, BaseExceptionGroup, click.Abort, KeyboardInterrupt) as error:
        causes = list(leaves(error)) if isinstance(error, BaseExceptionGroup) else [error]
        if any(isinstance(cause, click.Abort | KeyboardInterrupt) for cause in causes):
            return EXIT_INTERRUPTED
        if not all(isinstance(cause, RelayError) for cause in causes):
            raise
        return complain(_explain(causes[0]))
    return outcome if isinstance(outcome, int) else 0


def _explain(error: BaseException) -> str:
    match error:
        case StoreForbids():
            return (
                f"the database refused access: {error}; `relay doctor` shows the missing privileges"
            )
        case StoreLacks():
            return (
                f"the database is not as relay needs it: {error}; `relay doctor` shows what is"
                " missing"
            )
        case StoreUnavailable():
            return f"cannot reach the database: {error}"
        case _:
            return str(error)


def complain(text: str) -> int:
    click.echo(f"relay: {' '.join(text.split())}", err=True)
    return EXIT_USAGE


@click.group(
    name="relay",
    cls=LazyGroup,
    places={
        "doctor": "relay.cli.doctor:doctor",
        "ingest": "relay.cli.ingest:ingest",
        "token": "relay.cli.access:token",
        "grant": "relay.cli.access:grant",
        "grants": "relay.cli.access:grants",
        "revoke": "relay.cli.access:revoke",
        "link": "relay.cli.links:link",
        "top": "relay.cli.operation.top:top",
        "nodes": "relay.cli.operation.nodes:nodes",
        "audit": "relay.cli.operation.audit:audit",
        "stream": "relay.cli.operation.operate:stream",
        "user": "relay.cli.operation.operate:user",
        "connection": "relay.cli.operation.operate:connection",
        "webhook": "relay.cli.targets.webhooks:webhook",
        "target": "relay.cli.targets.targets:target",
        "config": "relay.cli.operation.settings:config_group",
        "db": "relay.cli.operation.database:db",
        "load": "relay.cli.load.load:load",
    },
    sections={
        "Start here": ("demo", "serve", "doctor"),
        "Cameras": ("ingest",),
        "Access": ("token", "grant", "grants", "revoke", "link"),
        "Operation": (
            "top",
            "nodes",
            "audit",
            "stream",
            "user",
            "connection",
            "webhook",
            "target",
            "config",
            "db",
        ),
        "Load tests": ("load",),
    },
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": MAX_HELP_WIDTH,
    },
)
@click.version_option(__version__, message="relay %(version)s")
def relay() -> None:
    """Live video over WebSockets: from phones to viewers, with alerts in return.

    \b
    Try it:               relay demo
    Run the server:       relay serve --bind 0.0.0.0:3000
    Get a token:          relay token session --user ana@example.org
    Check the setup:      relay doctor
    Monitor it:           relay top
    Run a load test:      relay load smoke
    """


@relay.command()
@settings_options(*SETTINGS)
def serve() -> None:
    """Run the server.

    Each setting can be an option (--max-message-size 1048576), an environment variable
    (RELAY_MAX_MESSAGE_SIZE=1048576) or a line in the TOML file (max_message_size = 1048576).
    Options take precedence over the environment, and the environment over the file. Keep secrets
    out of options: other users of the machine can see them.

    \b
    Example:
      relay serve --bind 0.0.0.0:3000
      RELAY_DATABASE_URL=postgresql://relay@db/app relay serve --config relay.toml
    """
    import trio

    from relay.process.garbage import collect_garbage_less_often

    collect_garbage_less_often()
    settings = configuration().settings
    configure_logging(settings.log_level, settings.log_format)
    trio.run(_serve, settings)


async def _serve(settings: Settings) -> None:
    import trio

    from relay.process.garbage import keep_what_there_is

    if settings.workers > 1:
        from relay.workers.parent import serve_with_workers as run
    else:
        from relay.app import serve as run
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(run, settings)
        for url in urls:
            click.echo(f"relay listening on {url}")
        notify_service_manager()
        keep_what_there_is()
        if all(re.match(r"127\.|::1$", address.host) for address in settings.addresses):
            bind = f"0.0.0.0:{urlsplit(urls[0]).port}"
            click.echo(
                f"relay: only this machine can connect; to let phones in, use --bind {bind}",
                err=True,
            )


@relay.command()
@click.option(
    "--seconds", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
    help="Stop after this many seconds; by default, run until Ctrl-C.",
)  # fmt: skip
@click.option(
    "--video", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
    help="Video to play instead of the included one.",
)  # fmt: skip
@click.option("--bind", metavar="HOST:PORT", help="Address to listen on.")
@click.option(
    "--data-dir", type=click.Path(path_type=Path), metavar="DIR",
    help="Keep the database in this directory; by default, it is deleted afterwards.",
)  # fmt: skip
def demo(
    seconds: float | None, video: Path | None, bind: str | None, data_dir: Path | None
) -> None:
    """Run a demonstration: a phone, two viewers and alerts.

    Starts a relay and clients for it: a phone that streams a video, a fast viewer, a slow viewer,
    and a service that raises alerts. Shows what each of them measures.

    \b
    Example:
      relay demo --seconds 20
      relay demo --video film.mp4
    """
    import trio

    from relay.demo.stage import DemoOptions, run

    trio.run(run, DemoOptions(seconds, video, bind, data_dir))
