"""`relay token`, `grant`, `revoke` and `grants`: tokens, and who may watch which stream."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from relay.cli.grouped_help import GroupedCommand, GroupedGroup
from relay.cli.options import STORE_SETTINGS, duration, settings_options
from relay.cli.running import with_store
from relay.errors import ConfigError
from relay.model.access.identity import ANY_STREAM, prefixes_of
from relay.protocol.messages import STREAM_ID_PATTERN, STREAM_ID_RULE, STREAM_PREFIX_PATTERN

if TYPE_CHECKING:
    from relay.postgres.store import Store

SEPARATORS = "-._:"


def _stream(_context: click.Context, _parameter: click.Parameter, text: str | None) -> str | None:
    """Check a stream id, a prefix of ids, or '*'."""
    if text is None or text == ANY_STREAM or re.match(STREAM_ID_PATTERN, text):
        return text
    if not re.match(STREAM_PREFIX_PATTERN, text):
        raise click.BadParameter(
            f"expected a stream id ({STREAM_ID_RULE}), a prefix that ends in '*', or"
            f" '{ANY_STREAM}' for all streams; not {text!r}"
        )
    return text


def _streams(
    context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> tuple[str, ...]:
    for text in texts:
        _stream(context, parameter, text)
    return texts


def _warn_of_wide_prefixes(*streams: str) -> None:
    for prefix in prefixes_of(streams):
        if prefix[-1] not in SEPARATORS:
            click.echo(
                f"relay: warning: '{prefix}*' also covers ids such as '{prefix}2'; to avoid"
                f" that, put one of {' '.join(SEPARATORS)} before the '*'",
                err=True,
            )


@click.group(cls=GroupedGroup)
def token() -> None:
    """Create and manage access tokens.

    \b
    For development:      relay token session --user ana@example.org
    For a service:        relay token service detector --consume '*' --alerts
    List them:            relay token list
    """


@token.command(name="session")
@click.option(
    "--user",
    "email",
    metavar="EMAIL",
    required=True,
    help="E-mail address of the user; created if there is none.",
)
@click.option(
    "--ttl", default="7d", show_default=True, metavar="TIME", callback=duration,
    help="Lifetime of the session.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Allow this in a database that other applications use.")
@settings_options(*STORE_SETTINGS)
def token_session(email: str, ttl: timedelta, force: bool) -> None:
    """Create a session for development and print its token.

    In production, your application creates sessions when people sign in with Better Auth.

    \b
    Example:
      TOKEN=$(relay token session --user ana@example.org --ttl 12h)
    """

    async def create(store: Store) -> str:
        if not (store.is_embedded or force):
            raise ConfigError(
                "this database is not relay's own, so your application should create its users and"
                " sessions; --force creates them anyway"
            )
        return await store.sessions.create(email, ttl)

    click.echo(with_store(create))


@token.command(name="service")
@click.argument("name")
@click.option(
    "--consume", multiple=True, metavar="STREAM", callback=_streams,
    help="Let it watch this stream; 'tenant-a:*' stands for all ids with that prefix,"
    f" '{ANY_STREAM}' for all streams. Repeatable.",
)  # fmt: skip
@click.option(
    "--produce", multiple=True, metavar="STREAM", callback=_streams,
    help="Let it produce this stream in the name of a user (--for); named like those of --consume."
    " Repeatable.",
)  # fmt: skip
@click.option(
    "--for",
    "owner",
    metavar="USER",
    help="The user (id or e-mail address) who owns what it produces; the token ends with the user.",
)
@click.option(
    "--alerts", is_flag=True, help="Let it raise alerts on the streams that it may watch."
)
@click.option(
    "--operate",
    is_flag=True,
    help="Let it read the statistics of all connections, as `relay top` does, end connections,"
    " and change the owners of streams.",
)
@click.option(
    "--revoke",
    "revokes",
    is_flag=True,
    help="Let it report sessions that have ended (POST /revocations).",
)
@settings_options(*STORE_SETTINGS)
def token_service(
    name: str,
    *,
    consume: tuple[str, ...],
    produce: tuple[str, ...],
    owner: str | None,
    alerts: bool,
    operate: bool,
    revokes: bool,
) -> None:
    """Create a token for a service and print it. It is shown only once.

    \b
    Example:
      relay token service detector --consume '*' --alerts
      relay token service detector-a --consume 'tenant-a:*' --alerts
      relay token service cameras --produce 'site-a:*' --for ana@example.org
    """
    if bool(produce) != (owner is not None):
        raise ConfigError(
            "--produce STREAM and --for USER belong together: what a service produces is owned by"
            " a user"
        )
    if not (consume or produce or operate or revokes):
        click.echo(
            "relay: warning: this token permits nothing without --consume STREAM, --produce STREAM,"
            " --operate or --revoke",
            err=True,
        )

    _warn_of_wide_prefixes(*consume, *produce)

    async def create(store: Store) -> str:
        return await store.service_tokens.create(
            name,
            consume=consume,
            alerts=alerts,
            operate=operate,
            revoke=revokes,
            produce=produce,
            user_id=None if owner is None else await store.sessions.find_user(owner),
        )

    click.echo(with_store(create))


@token.command(name="list")
@settings_options(*STORE_SETTINGS)
def token_list() -> None:
    """List the service tokens and what they permit.

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
                    f"revoke={'yes' if service.revoke else 'no'}",
                    f"produce={','.join(sorted(service.produce)) or '-'}",
                    f"for={service.user_id or '-'}",
                    f"made={made:%Y-%m-%d}",
                ]
            )
            for service, made in await store.service_tokens.all()
        )

    click.echo(with_store(show) or "there are no service tokens")


@token.command(name="revoke")
@click.argument("name")
@settings_options(*STORE_SETTINGS)
def token_revoke(name: str) -> None:
    """Revoke the token of a service. Its connections are closed within a second.

    \b
    Example:
      relay token revoke detector
    """

    async def revoke(store: Store) -> str:
        await store.service_tokens.revoke(name)
        return f"revoked the token of {name}"

    click.echo(with_store(revoke))


@click.command(cls=GroupedCommand)
@click.argument("user")
@click.argument("stream", callback=_stream)
@settings_options(*STORE_SETTINGS)
def grant(user: str, stream: str) -> None:
    """Let a user watch a stream of another user.

    USER is an id or an e-mail address. STREAM is an id, a prefix such as 'tenant-a:*', or '*' for
    all streams; it need not exist yet. The grant takes effect within a second, even on open
    connections.

    \b
    Example:
      relay grant ana@example.org front-door
      relay grant ben@example.org 'tenant-a:*'
    """
    _warn_of_wide_prefixes(stream)

    async def insert(store: Store) -> str:
        user_id = await store.sessions.find_user(user)
        new = await store.grants.grant(user_id, stream)
        return f"{user_id} may {'now' if new else 'already'} watch {stream}"

    click.echo(with_store(insert))


@click.command(cls=GroupedCommand)
@click.argument("user")
@click.argument("stream", callback=_stream)
@settings_options(*STORE_SETTINGS)
def revoke(user: str, stream: str) -> None:
    """Withdraw a grant.

    \b
    Example:
      relay revoke ana@example.org front-door
    """

    async def delete(store: Store) -> str:
        user_id = await _grantee(store, user)
        if not await store.grants.revoke(user_id, stream):
            raise ConfigError(
                f"{user_id} has no grant for {stream}; `relay grants` lists all grants"
            )
        return f"{user_id} may no longer watch {stream}"

    click.echo(with_store(delete))


@click.command(cls=GroupedCommand)
@click.option("--user", metavar="USER", help="Only grants to this user (id or e-mail address).")
@click.option(
    "--stream",
    metavar="STREAM",
    callback=_stream,
    help="Only grants for this stream, or this prefix.",
)
@settings_options(*STORE_SETTINGS)
def grants(user: str | None, stream: str | None) -> None:
    """List which users may watch which streams of others.

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
    """The id of a user; it may be that of a deleted user who still has grants."""
    if await store.grants.all(user_id=user):
        return user
    return await store.sessions.find_user(user)
