"""`relay link`: links to the pictures of one stream, for tools that can send no token."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from relay.cli.grouped_help import GroupedGroup
from relay.cli.options import STORE_SETTINGS, configuration, duration, settings_options
from relay.cli.running import with_store
from relay.errors import ConfigError
from relay.model.access.link import (
    DEFAULT_LINK_READERS,
    MAX_LINK_READERS,
    MAX_LINK_SECONDS,
    LinkPurpose,
    NewLink,
    path_of,
)
from relay.protocol.messages import STREAM_ID_PATTERN, STREAM_ID_RULE

if TYPE_CHECKING:
    from relay.postgres.store import Store


def _stream_id(_context: click.Context, _parameter: click.Parameter, text: str) -> str:

    if not re.match(STREAM_ID_PATTERN, text):
        raise click.BadParameter(f"expected a stream id ({STREAM_ID_RULE}), not {text!r}")
    return text


def _lifetime(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> timedelta | None:
    lifetime = duration(context, parameter, text)
    if lifetime is not None and lifetime.total_seconds() > MAX_LINK_SECONDS:
        raise click.BadParameter(f"a link lives 24h at most, not {text}")
    return lifetime


@click.group(cls=GroupedGroup)
def link() -> None:
    """Create and revoke links to the pictures of one stream, for tools that cannot send a token.

    Whoever has the URL sees that stream until the link expires, so treat it as a password.

    \b
    For an <img>:         relay link make front-door --what mjpeg --for 1h
    List them:            relay link list
    """


@link.command(name="make")
@click.argument("stream", callback=_stream_id)
@click.option(
    "--what",
    type=click.Choice(["still", "mjpeg"]),
    required=True,
    help="What it shows: single pictures (latest.jpg), or MJPEG (live.mjpeg).",
)
@click.option(
    "--for", "lifetime", default="1h", show_default=True, metavar="TIME", callback=_lifetime,
    help="Lifetime of the link, 24h at most.",
)  # fmt: skip
@click.option(
    "--readers",
    type=click.IntRange(1, MAX_LINK_READERS),
    default=DEFAULT_LINK_READERS,
    show_default=True,
    help="How many may use it at a time.",
)
@click.option(
    "--user",
    metavar="USER",
    help="User whose permissions count (id or e-mail address); by default the stream's owner.",
)
@settings_options("base_path", *STORE_SETTINGS)
def link_make(
    stream: str, what: LinkPurpose, lifetime: timedelta, readers: int, user: str | None
) -> None:
    """Create a link and print its path, which is shown only once.

    \b
    Example:
      curl -o now.jpg "http://localhost:3000$(relay link make front-door --what still)"
    """

    async def make(store: Store) -> str:
        if user is None:
            user_id, by_session = await store.links.owner_of(stream)
        else:
            user_id = await store.sessions.find_user(user)
            by_session = not await store.sessions.deleted_among([user_id])
        new = NewLink(stream, what, round(lifetime.total_seconds()), readers)
        made, capability = await store.links.make(
            new, user_id, by_session=by_session, by_command=True
        )
        return path_of(made, capability, configuration().settings.base_path or "")

    click.echo(with_store(make))


@link.command(name="list")
@click.option("--user", metavar="USER", help="Only links of this user (id or e-mail address).")
@settings_options(*STORE_SETTINGS)
def link_list(user: str | None) -> None:
    """List the links that have not expired.

    \b
    Example:
      relay link list
    """

    async def show(store: Store) -> str:
        user_id = None if user is None else await store.sessions.find_user(user)
        return "\n".join(
            f"{each.link_id}\t{each.stream_id}\t{each.purpose}\tby={each.made_by}"
            f"\treaders={each.readers}\tuntil={each.expires_at:%Y-%m-%dT%H:%MZ}"
            for each in await store.links.all(user_id)
        )

    click.echo(with_store(show) or "there are no links")


@link.command(name="revoke")
@click.argument("link_id", metavar="LINK")
@settings_options(*STORE_SETTINGS)
def link_revoke(link_id: str) -> None:
    """Revoke a link, by its id in `relay link list`. Its readers are cut off within a second.

    \b
    Example:
      relay link revoke 5f2c90ab11de
    """

    async def revoke(store: Store) -> str:
        if not await store.links.revoke(link_id, by_command=True):
            raise ConfigError(f"there is no link {link_id!r}; `relay link list` lists all")
        return f"revoked the link {link_id}"

    click.echo(with_store(revoke))
