"""The command line. Floor 6.

Commands import what they run only when they run, so that `relay --help` is quick. What goes wrong
in a way that relay can explain is one line on stderr and exit code 2, never a traceback.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from relay import config
from relay.config import SETTINGS, Configuration, Settings
from relay.errors import ConfigError, RelayError, StoreUnavailable
from relay.logs import configure_logging
from relay.model import ANY_STREAM
from relay.protocol.messages import STREAM_ID_PATTERN, STREAM_ID_RULE

if TYPE_CHECKING:
    from relay.app import Store
    from relay.postgres.database import Database
    from relay.postgres.triggers import SessionTriggers

Command = TypeVar("Command", bound=Callable[..., Any])
Answer = TypeVar("Answer")

FAILED, MISUSED, INTERRUPTED = 1, 2, 130


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
        unreachable = isinstance(causes[0], StoreUnavailable)
        return complain(f"{'cannot reach the database: ' if unreachable else ''}{causes[0]}")
    return outcome if isinstance(outcome, int) else 0


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


def settings_options(*names: str) -> Callable[[Command], Command]:
    """`--config` and the flags of these settings, for `configuration()` to put together."""

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            setting = SETTINGS[name]
            if isinstance(setting.default, bool):
                command = click.option(
                    f"{config.flag(name)}/{config.flag(f'no_{name}')}",
                    name,
                    default=None,
                    help=setting.metadata["about"],
                    callback=_keep_switch,
                    expose_value=False,
                )(command)
                continue
            default = f"  [default: {setting.default}]" if setting.default not in (None, ()) else ""
            command = click.option(
                config.flag(name),
                name,
                metavar=config.placeholder(name),
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


def _keep_switch(context: click.Context, parameter: click.Parameter, value: bool | None) -> None:  # noqa: FBT001
    _keep(context, parameter, None if value is None else str(value).lower())


def configuration() -> Configuration:
    """The settings as the current command got them."""
    flags = dict(click.get_current_context().ensure_object(dict))
    return config.load(config_file=flags.pop("config", None), flags=flags)


DATABASE = ("database_url", "data_dir", "postgres_bin")
STORE = (*DATABASE, "auth_schema", "auth_user_table", "auth_session_table")


@click.group(name="relay", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="relay", message="relay %(version)s")
def relay() -> None:
    """Live video over WebSockets: phones in, viewers out, alerts back.

    \b
    See it work:     relay demo
    Run it:          relay serve --bind 0.0.0.0:3000
    Get a token:     relay token session --user ana@example.org
    """


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
    gc.set_threshold(5000, 5, 30)


@relay.group()
def token() -> None:
    """Make tokens for people and for programs."""


def _duration(
    _context: click.Context, _parameter: click.Parameter, text: str | None
) -> timedelta | None:
    if text is None:
        return None
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
    if (match := re.fullmatch(r"([1-9][0-9]{0,4})([smhd])", text)) is None:
        raise click.BadParameter(f"expected a time such as 90s, 30m, 12h or 7d, not {text!r}")
    return timedelta(**{units[match[2]]: int(match[1])})


@token.command(name="session")
@click.option("--user", "email", metavar="EMAIL", required=True, help="Made if it is new.")
@click.option(
    "--ttl", default="7d", show_default=True, metavar="TIME", callback=_duration,
    help="How long the session lasts.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Also in a database that is not relay's own.")
@settings_options(*STORE)
def token_session(email: str, ttl: timedelta, force: bool) -> None:  # noqa: FBT001
    """Make a user and a session for development, and print its token.

    In real use your application does this, when a person signs in with Better Auth.

    \b
    Example:
      TOKEN=$(relay token session --user ana@example.org --ttl 12h)
    """

    async def create(store: Store) -> str:
        if not (store.embedded or force):
            raise ConfigError(
                "this database is not relay's own, and people sign in there some other way;"
                " --force makes the user and the session all the same"
            )
        return await store.sessions.create(email, ttl)

    click.echo(_with_store(create))


@token.command(name="service")
@click.argument("name")
@click.option(
    "--consume", multiple=True, metavar="STREAM",
    help=f"A stream it may watch; '{ANY_STREAM}' for all. May be repeated.",
)  # fmt: skip
@click.option("--alerts", is_flag=True, help="It may raise alerts, on the streams it may watch.")
@click.option("--operate", is_flag=True, help="It may read the figures of every connection.")
@settings_options(*STORE)
def token_service(name: str, consume: tuple[str, ...], alerts: bool, operate: bool) -> None:  # noqa: FBT001
    """Make a token for a program, and print it: it is shown only now.

    \b
    Example:
      relay token service detector --consume '*' --alerts
    """
    if not (consume or operate):
        click.echo("relay: this token allows nothing: it lacks --consume STREAM", err=True)

    async def create(store: Store) -> str:
        return await store.services.create(name, consume=consume, alerts=alerts, operate=operate)

    click.echo(_with_store(create))


@token.command(name="list")
@settings_options(*STORE)
def token_list() -> None:
    """List the programs that have a token, and what it allows them.

    \b
    Example:
      relay token list
    """

    async def show(store: Store) -> str:
        return "\n".join(
            "\t".join(
                [
                    service.name,
                    f"consume={','.join(sorted(service.consume)) or '-'}",
                    f"alerts={'yes' if service.alerts else 'no'}",
                    f"operate={'yes' if service.operate else 'no'}",
                    f"made={made:%Y-%m-%d}",
                ]
            )
            for service, made in await store.services.all()
        )

    click.echo(_with_store(show) or "there are no service tokens")


@token.command(name="revoke")
@click.argument("name")
@settings_options(*STORE)
def token_revoke(name: str) -> None:
    """End a program's token; its connections end within a second.

    \b
    Example:
      relay token revoke detector
    """

    async def revoke(store: Store) -> str:
        await store.services.revoke(name)
        return f"revoked the token of {name}"

    click.echo(_with_store(revoke))


def _stream(_context: click.Context, _parameter: click.Parameter, text: str | None) -> str | None:
    if text is not None and text != ANY_STREAM and not re.match(STREAM_ID_PATTERN, text):
        raise click.BadParameter(f"expected {STREAM_ID_RULE}, or '{ANY_STREAM}', not {text!r}")
    return text


@relay.command()
@click.argument("user")
@click.argument("stream", callback=_stream)
@settings_options(*STORE)
def grant(user: str, stream: str) -> None:
    """Let a USER, by id or e-mail address, watch a STREAM of others; '*' is every stream.

    It counts within a second, on connections that are open too, and also before the stream is
    first registered.

    \b
    Example:
      relay grant ana@example.org front-door
    """

    async def insert(store: Store) -> str:
        user_id = await store.sessions.find_user(user)
        new = await store.grants.grant(user_id, stream)
        return f"{user_id} may {'now' if new else 'already'} watch {stream}"

    click.echo(_with_store(insert))


@relay.command()
@click.argument("user")
@click.argument("stream", callback=_stream)
@settings_options(*STORE)
def revoke(user: str, stream: str) -> None:
    """Take back what `relay grant` gave.

    \b
    Example:
      relay revoke ana@example.org front-door
    """

    async def delete(store: Store) -> str:
        user_id = await _grantee(store, user)
        if not await store.grants.revoke(user_id, stream):
            raise ConfigError(f"{user_id} has no grant for {stream}; `relay grants` shows all")
        return f"{user_id} may no longer watch {stream}"

    click.echo(_with_store(delete))


@relay.command()
@click.option("--user", metavar="USER", help="Those to one user, by id or e-mail address.")
@click.option("--stream", metavar="STREAM", callback=_stream, help="Those of one stream.")
@settings_options(*STORE)
def grants(user: str | None, stream: str | None) -> None:
    """List who may watch the streams of others.

    \b
    Example:
      relay grants --stream front-door
    """

    async def show(store: Store) -> str:
        user_id = None if user is None else await _grantee(store, user)
        return "\n".join(
            f"{each.user_id}\t{each.stream_id}\tsince={each.granted_at:%Y-%m-%d}"
            for each in await store.grants.all(user_id=user_id, stream_id=stream)
        )

    click.echo(_with_store(show) or "there are no grants")


async def _grantee(store: Store, user: str) -> str:
    """The id of a user, who may be gone while the grants are still there."""
    if await store.grants.all(user_id=user):
        return user
    return await store.sessions.find_user(user)


def _with_store(work: Callable[[Store], Awaitable[str]]) -> str:
    import trio

    settings = _quiet_settings()

    async def run() -> str:
        from relay import app

        async with app.open_store(settings) as store:
            return await work(store)

    return trio.run(run)


def _with_database(work: Callable[[Database], Awaitable[Answer]]) -> Answer:
    import trio

    settings = _quiet_settings()

    async def run() -> Answer:
        from relay import app

        async with app.open_database_of(settings) as database:
            return await work(database)

    return trio.run(run)


def _quiet_settings() -> Settings:
    """The settings, for a command whose output is its answer."""
    settings = configuration().settings
    configure_logging("warning", settings.log_format)
    return settings


@relay.group()
def db() -> None:
    """Look after relay's own tables, in the schema `relay`."""


@db.command(name="migrate")
@click.option(
    "--watch-sessions", is_flag=True,
    help="Put triggers on Better Auth's tables, too, so that relay hears of logouts at once.",
)  # fmt: skip
@settings_options(*STORE)
def db_migrate(watch_sessions: bool) -> None:  # noqa: FBT001
    """Bring relay's tables to the form that this version needs.

    relay's own PostgreSQL does this by itself when it starts.

    \b
    Example:
      RELAY_DATABASE_URL=postgresql://owner@db/app relay db migrate --watch-sessions
    """
    from relay.postgres.migrate import migrate

    settings = configuration().settings

    async def run(database: Database) -> list[str]:
        done = [f"applied {name}" for name in await migrate(database)]
        if watch_sessions and await (await _triggers(database, settings)).install():
            done.append("watching sessions: the triggers are on Better Auth's tables")
        return done

    for line in _with_database(run) or ["nothing to do"]:
        click.echo(line)


async def _triggers(database: Database, settings: Settings) -> SessionTriggers:
    from relay.postgres.sessions import find_better_auth
    from relay.postgres.triggers import SessionTriggers

    sessions = await find_better_auth(
        database,
        schema=settings.auth_schema,
        user_table=settings.auth_user_table,
        session_table=settings.auth_session_table,
    )
    return SessionTriggers(database, sessions.tables)


@db.command(name="status")
@settings_options(*STORE)
def db_status() -> int:
    """Say whether `relay db migrate` has something to do; the exit code is 1 then.

    Also says how relay hears of logouts, which is a matter of choice.

    \b
    Example:
      relay db status --database-url postgresql://relay@db/app
    """
    from relay.postgres.migrate import pending

    settings = configuration().settings

    async def look(database: Database) -> list[str]:
        if missing := await pending(database):
            return [f"missing {name}" for name in missing]
        try:
            told = await (await _triggers(database, settings)).installed()
        except ConfigError as error:
            return ["up to date", f"sessions: {error}"]
        every = f"{settings.session_poll:g} s"
        return [
            "up to date",
            "sessions: triggers tell of logouts at once"
            if told
            else f"sessions: read every {every}; with `relay db migrate --watch-sessions`"
            " triggers tell of logouts",
        ]

    lines = _with_database(look)
    for line in lines:
        click.echo(line)
    return FAILED if lines[0] != "up to date" else 0


@relay.command()
@click.option("--user", "who", metavar="ID", help="Only of this user, or of the service so named.")
@click.option("--what", metavar="WHAT", help="Only of this kind: auth, register, close, …")
@click.option("--since", metavar="TIME", callback=_duration, help="Only the last 90s, 12h, 7d, …")
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, metavar="N",
    help="The newest N.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line.")
@settings_options(*DATABASE)
def audit(
    who: str | None,
    what: str | None,
    since: timedelta | None,
    limit: int,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Show who did what, and what became of it; the newest at the end.

    \b
    Example:
      relay audit --since 1h --what auth
      relay audit --user 7Kq2VxT1 --limit 1000 --json
    """
    from relay import app
    from relay.audit_report import show
    from relay.postgres.audit import AuditEvent, AuditTable

    async def read(database: Database) -> list[AuditEvent]:
        await app.check_tables(database)
        table = AuditTable(database)
        return await table.read(who=who, what=what, since=since, limit=limit)

    show(_with_database(read), as_json=as_json)


@relay.group(name="config")
def config_group() -> None:
    """Look at the settings."""


@config_group.command(name="check")
@settings_options(*SETTINGS)
def config_check() -> None:
    """Check the settings, and nothing else.

    \b
    Example:
      relay config check --config relay.toml
    """
    configuration()
    click.echo("the settings are fine")


@config_group.command(name="show")
@settings_options(*SETTINGS)
def config_show() -> None:
    """Show each setting and where it comes from, as a file that --config reads.

    \b
    Example:
      relay config show > relay.toml
    """
    for line in configuration().describe():
        click.echo(line)


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
