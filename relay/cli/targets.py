"""`relay target`: where alerts and stream events are delivered, of whatever kind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from relay.cli.grouped_help import GroupedCommand, GroupedGroup
from relay.cli.options import STORE_SETTINGS, configuration, duration, settings_options
from relay.cli.running import with_store
from relay.cli.target_options import (
    TARGET_SETTINGS,
    listed,
    rule_options,
    rules_from,
    try_target,
)
from relay.errors import ConfigError
from relay.model.alert_target import NewTarget
from relay.model.link import MAX_LINK_SECONDS
from relay.settings.loading import NTFY_CREDENTIALS_VARIABLE

if TYPE_CHECKING:
    from datetime import timedelta

    from relay.postgres.store import Store


@click.group(cls=GroupedGroup)
def target() -> None:
    """Deliver alerts and stream events to where people are.

    Webhooks are targets, too: `relay webhook` adds them.

    \b
    To phones, by ntfy:   relay target add ntfy https://ntfy.sh/mine --stream door
    Try one:              relay target test ntfy_0123456789abcdef
    See their state:      relay target list
    """


@target.group(cls=GroupedGroup)
def add() -> None:
    """Add a target of one of these kinds, and print its id.

    \b
    To phones, by ntfy:   relay target add ntfy https://ntfy.sh/mine --stream door
    """


@add.command(name="ntfy", cls=GroupedCommand)
@click.argument("url", metavar="URL")
@click.option(
    "--credentials-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"Read an access token, or USER:PASSWORD, from this file instead of"
    f" {NTFY_CREDENTIALS_VARIABLE}.",
)
@click.option(
    "--picture",
    is_flag=True,
    help="Attach a link to the newest picture, if the stream sends JPEG. Everybody who reads the"
    " topic sees that stream until the link expires. Needs public_url.",
)
@click.option(
    "--picture-for",
    default="6h",
    show_default=True,
    metavar="TIME",
    callback=duration,
    help="Lifetime of these links, 24h at most.",
)
@rule_options
@settings_options(*TARGET_SETTINGS, "public_url")
def add_ntfy(
    url: str,
    owner: str | None,
    credentials_file: Path | None,
    *,
    picture: bool,
    picture_for: timedelta,
    **given: Any,
) -> None:
    """Publish to a topic of ntfy (https://ntfy.sh), whose app shows messages on phones.

    URL is that of the topic. Whoever knows the name of a topic that is not protected can read it.

    \b
    Example:
      relay target add ntfy https://ntfy.example.org/door --stream front-door --cooldown 5m
      relay target add ntfy https://ntfy.sh/ours --owner ana@example.org --credentials-file ntfy
    """
    from relay.alerts.targets.ntfy import check_ntfy_url
    from relay.outgoing.webhook_client import check_webhook_url

    settings = configuration().settings
    stream_id, rules = rules_from(owner, **given)
    check_webhook_url(url, plain=bool(settings.webhook_networks))
    check_ntfy_url(url)
    if picture and settings.public_url is None:
        raise ConfigError("--picture needs the setting public_url, which the links begin with")
    if not 60 <= picture_for.total_seconds() <= MAX_LINK_SECONDS:
        raise click.BadParameter("links to pictures live between 1m and 24h")
    options: dict[str, Any] = {}
    if picture:
        options = {"picture": True, "picture_for": round(picture_for.total_seconds())}
    secret = _credentials(credentials_file)

    async def insert(store: Store) -> str:
        owner_id = None if owner is None else await store.sessions.find_user(owner)
        return await store.alert_targets.add(
            NewTarget(url, secret, "ntfy", owner_id, stream_id, rules, options)
        )

    click.echo(with_store(insert))


@target.command(name="list")
@settings_options(*STORE_SETTINGS)
def target_list() -> None:
    """List the targets of all kinds with their state.

    \b
    Example:
      relay target list
    """

    async def show(store: Store) -> str:
        return await listed(store)

    click.echo(with_store(show) or "there are no targets")


@target.command(name="remove")
@click.argument("target_id", metavar="ID")
@settings_options(*STORE_SETTINGS)
def target_remove(target_id: str) -> None:
    """Remove a target, and revoke the links that were made for it.

    \b
    Example:
      relay target remove ntfy_0123456789abcdef
    """

    async def remove(store: Store) -> str:
        await store.alert_targets.remove(target_id)
        return f"removed {target_id}"

    click.echo(with_store(remove))


@target.command(name="test")
@click.argument("target_id", metavar="ID")
@settings_options(*TARGET_SETTINGS)
def target_test(target_id: str) -> None:
    """Deliver a test message. If it is accepted, a target that was given up resumes.

    \b
    Example:
      relay target test ntfy_0123456789abcdef
    """
    settings = configuration().settings

    async def test(store: Store) -> str:
        return await try_target(store, settings, target_id)

    click.echo(with_store(test))


def _credentials(file: Path | None) -> str:
    """What to log in with, from the file or the environment; empty if there is none."""
    from relay.alerts.targets.ntfy import MAX_CREDENTIALS_LENGTH, check_credentials

    if file is None:
        where = NTFY_CREDENTIALS_VARIABLE
        found = os.environ.get(where, "").strip()
        if not found:
            return ""
    else:
        where = f"--credentials-file {file}"
        try:
            with file.open(encoding="utf-8") as opened:
                found = opened.read(MAX_CREDENTIALS_LENGTH + 2).strip()
        except OSError as error:
            raise ConfigError(f"cannot read {where}: {error.strerror}") from None
        except ValueError:
            raise ConfigError(f"cannot read {where}: it is not a text file") from None
    check_credentials(found, where)
    return found
