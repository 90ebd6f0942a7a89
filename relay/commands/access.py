"""Tokens for people and programs, and who may watch the streams of others. Floor 6."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from relay.commands.options import STORE, duration, settings_options
from relay.commands.running import with_store
from relay.errors import ConfigError
from relay.model import ANY_STREAM
from relay.protocol.messages import STREAM_ID_PATTERN, STREAM_ID_RULE

if TYPE_CHECKING:
    from relay.app import Store


@click.group()
def token() -> None:
    """Make tokens for people and for programs."""


@token.command(name="session")
@click.option("--user", "email", metavar="EMAIL", required=True, help="Made if it is new.")
@click.option(
    "--ttl", default="7d", show_default=True, metavar="TIME", callback=duration,
    help="How long the session lasts.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Also in a database that is not relay's own.")
@settings_options(*STORE)
def token_session(email: str, ttl: timedelta, force: bool) -> None:
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

    click.echo(with_store(create))


@token.command(name="service")
@click.argument("name")
@click.option(
    "--consume", multiple=True, metavar="STREAM",
    help=f"A stream it may watch; '{ANY_STREAM}' for all. May be repeated.",
)  # fmt: skip
@click.option("--alerts", is_flag=True, help="It may raise alerts, on the streams it may watch.")
@click.option("--operate", is_flag=True, help="It may read the figures of every connection.")
@settings_options(*STORE)
def token_service(name: str, consume: tuple[str, ...], alerts: bool, operate: bool) -> None:
    """Make a token for a program, and print it: it is shown only now.

    \b
    Example:
      relay token service detector --consume '*' --alerts
    """
    if not (consume or operate):
        click.echo("relay: this token allows nothing: it lacks --consume STREAM", err=True)

    async def create(store: Store) -> str:
        return await store.services.create(name, consume=consume, alerts=alerts, operate=operate)

    click.echo(with_store(create))


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

    click.echo(with_store(show) or "there are no service tokens")


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

    click.echo(with_store(revoke))


def _stream(_context: click.Context, _parameter: click.Parameter, text: str | None) -> str | None:
    if text is not None and text != ANY_STREAM and not re.match(STREAM_ID_PATTERN, text):
        raise click.BadParameter(f"expected {STREAM_ID_RULE}, or '{ANY_STREAM}', not {text!r}")
    return text


@click.command()
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

    click.echo(with_store(insert))


@click.command()
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

    click.echo(with_store(delete))


@click.command()
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

    click.echo(with_store(show) or "there are no grants")


async def _grantee(store: Store, user: str) -> str:
    """The id of a user, who may be gone while the grants are still there."""
    if await store.grants.all(user_id=user):
        return user
    return await store.sessions.find_user(user)
