"""`relay webhook`: the URLs that alerts are posted to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from relay.cli.grouped_help import GroupedGroup
from relay.cli.options import STORE_SETTINGS, configuration, settings_options
from relay.cli.running import with_store
from relay.errors import ConfigError
from relay.protocol.messages import StreamId

if TYPE_CHECKING:
    from relay.model.webhook import Webhook
    from relay.postgres.store import Store

WEBHOOK_SETTINGS = (*STORE_SETTINGS, "webhook_networks")


@click.group(cls=GroupedGroup)
def webhook() -> None:
    """Post alerts to other servers over HTTP.

    \b
    Add one:              relay webhook add https://example.org/hook --stream door
    Try it:               relay webhook test wh_0123456789abcdef
    See its state:        relay webhook list
    """


@webhook.command(name="add")
@click.argument("url")
@click.option("--stream", "stream_id", metavar="STREAM", help="Post the alerts of this stream.")
@click.option(
    "--owner",
    metavar="USER",
    help="Post the alerts of all streams of this user (id or e-mail address).",
)
@settings_options(*WEBHOOK_SETTINGS)
def webhook_add(url: str, stream_id: str | None, owner: str | None) -> None:
    """Add a webhook, and print its id and its secret.

    The receiver uses the secret to verify signatures (Standard Webhooks). It is shown only once.

    \b
    Example:
      relay webhook add https://app.example.org/alerts --owner ana@example.org
    """
    import msgspec

    from relay.alerts.webhook_message import new_secret
    from relay.outgoing.webhook_client import check_webhook_url

    if (stream_id is None) == (owner is None):
        raise click.UsageError("give either --stream STREAM or --owner USER")
    if stream_id is not None:
        try:
            msgspec.convert(stream_id, StreamId)
        except msgspec.ValidationError:
            raise click.BadParameter(f"{stream_id!r} is not a stream id") from None
    check_webhook_url(url, plain=bool(configuration().settings.webhook_networks))
    secret = new_secret()

    async def add(store: Store) -> str:
        owner_id = None if owner is None else await store.sessions.find_user(owner)
        return await store.webhooks.add(url, secret, owner_id=owner_id, stream_id=stream_id)

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
        return "\n".join(_line(each, waiting) for each, waiting in await store.webhooks.all())

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
        await store.webhooks.remove(webhook_id)
        return f"removed {webhook_id}"

    click.echo(with_store(remove))


@webhook.command(name="test")
@click.argument("webhook_id", metavar="ID")
@settings_options(*WEBHOOK_SETTINGS)
def webhook_test(webhook_id: str) -> None:
    """Post a message of type `test`. If it is accepted, a webhook that was given up resumes.

    \b
    Example:
      relay webhook test wh_0123456789abcdef
    """
    networks = configuration().settings.webhook_networks

    async def post(store: Store) -> str:
        found = await store.webhooks.find(webhook_id)
        await _try(found, networks)
        goes_on = await store.webhooks.resume(webhook_id)
        return f"{webhook_id} accepted it{', and deliveries resume where they stopped' * goes_on}"

    click.echo(with_store(post))


async def _try(webhook: Webhook, networks: tuple[str, ...]) -> None:
    """Post a test message; `ConfigError` if it is not accepted."""
    import secrets

    import trio

    from relay.alerts import webhook_message, webhooks
    from relay.outgoing.webhook_client import Undelivered, open_webhook_client

    body = webhook_message.trial_message()
    headers = webhook_message.headers(webhook.secret, f"msg_{secrets.token_hex(12)}", body)
    try:
        async with open_webhook_client(networks) as webhook_client:
            with trio.fail_after(webhooks.WEBHOOK_TIMEOUT):
                await webhook_client.post(webhook.url, body, headers)
    except trio.TooSlowError:
        raise ConfigError(f"no answer within {webhooks.WEBHOOK_TIMEOUT:g} s") from None
    except Undelivered as why:
        raise ConfigError(f"the webhook did not accept it: {why}") from None


def _line(webhook: Webhook, waiting: int) -> str:
    whose = f"owner={webhook.owner_id}" if webhook.owner_id else f"stream={webhook.stream_id}"
    state = "ok"
    if webhook.given_up_at is not None:
        state = f"given up {webhook.given_up_at:%Y-%m-%d %H:%M}"
    elif webhook.failures:
        state = f"failed {webhook.failures} times"
        if webhook.try_again_at is not None:
            state += f", next attempt at {webhook.try_again_at:%H:%M:%S}"
    parts = [
        *(webhook.webhook_id, whose, webhook.url, state),
        f"posted={webhook.delivered}",
        f"waiting={waiting if waiting < 1000 else 'more than 999'}",
    ]
    if webhook.last_error:
        parts.append(f"error={webhook.last_error}")
    return "\t".join(parts)
