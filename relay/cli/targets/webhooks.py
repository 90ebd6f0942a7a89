"""`relay webhook`: the URLs that alerts are posted to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from relay.cli.grouped_help import GroupedCommand, GroupedGroup
from relay.cli.options import STORE_SETTINGS, configuration, settings_options
from relay.cli.running import with_store
from relay.cli.targets.options import (
    TARGET_SETTINGS,
    listed,
    rule_options,
    rules_from,
    try_target,
)
from relay.model.targets.alert_target import NewTarget

if TYPE_CHECKING:
    from relay.postgres.store import Store

KIND = "webhook"


@click.group(cls=GroupedGroup)
def webhook() -> None:
    """Post alerts and stream events to other servers over HTTP.

    \b
    Add one:              relay webhook add https://example.org/hook --stream door
    Try it:               relay webhook test wh_0123456789abcdef
    See its state:        relay webhook list
    """


@webhook.command(name="add", cls=GroupedCommand)
@click.argument("url")
@rule_options
@settings_options(*TARGET_SETTINGS)
def webhook_add(url: str, owner: str | None, **given: Any) -> None:
    """Add a webhook, and print its id and its secret.

    The receiver uses the secret to verify signatures (Standard Webhooks). It is shown only once.

    \b
    Example:
      relay webhook add https://app.example.org/alerts --owner ana@example.org
      relay webhook add https://pager.example.org/ --stream '*' --min-severity high --cooldown 5m
      relay webhook add https://app.example.org/live --stream door --event stream.online
    """
    from relay.alerts.targets.webhook_message import new_secret
    from relay.outgoing.webhook_client import check_webhook_url

    stream_id, rules = rules_from(owner, **given)
    check_webhook_url(url, plain=bool(configuration().settings.webhook_networks))
    secret = new_secret()

    async def add(store: Store) -> str:
        owner_id = None if owner is None else await store.sessions.find_user(owner)
        return await store.alert_targets.add(
            NewTarget(url, secret, owner_id=owner_id, stream_id=stream_id, rules=rules)
        )

    click.echo(f"{with_store(add)}\n{secret}")


@webhook.command(name="list")
@settings_options(*STORE_SETTINGS)
def webhook_list() -> None:
    """List the webhooks with their state.

    \b
    Example:
      relay webhook list
    """

    async def show(store: Store) -> str:
        return await listed(store, KIND)

    click.echo(with_store(show) or "there are no webhooks")


@webhook.command(name="remove")
@click.argument("webhook_id", metavar="ID")
@settings_options(*STORE_SETTINGS)
def webhook_remove(webhook_id: str) -> None:
    """Remove a webhook.

    \b
    Example:
      relay webhook remove wh_0123456789abcdef
    """

    async def remove(store: Store) -> str:
        await store.alert_targets.remove(webhook_id, KIND)
        return f"removed {webhook_id}"

    click.echo(with_store(remove))


@webhook.command(name="test")
@click.argument("webhook_id", metavar="ID")
@settings_options(*TARGET_SETTINGS)
def webhook_test(webhook_id: str) -> None:
    """Post a message of type `test`. If it is accepted, a webhook that was given up resumes.

    \b
    Example:
      relay webhook test wh_0123456789abcdef
    """
    settings = configuration().settings

    async def test(store: Store) -> str:
        return await try_target(store, settings, webhook_id, KIND)

    click.echo(with_store(test))
