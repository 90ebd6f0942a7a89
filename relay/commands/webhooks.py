"""Where alerts are posted to. Floor 6."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from relay.commands.options import STORE, configuration, settings_options
from relay.commands.running import with_store
from relay.errors import ConfigError
from relay.protocol.messages import StreamId

if TYPE_CHECKING:
    from relay.app import Store
    from relay.postgres.webhooks import Webhook

SETTINGS = (*STORE, "webhook_networks")


@click.group()
def webhook() -> None:
    """Have alerts posted to other servers, such as one that wakes phones by push."""


@webhook.command(name="add")
@click.argument("url")
@click.option("--stream", "stream_id", metavar="STREAM", help="Alerts of this stream.")
@click.option("--owner", metavar="USER", help="Of all streams of a user, by id or e-mail address.")
@settings_options(*SETTINGS)
def webhook_add(url: str, stream_id: str | None, owner: str | None) -> None:
    """Post alerts to a URL from now on; prints the webhook's id and its secret.

    The secret is shown only now: the receiver checks signatures with it, as Standard Webhooks say.

    \b
    Example:
      relay webhook add https://app.example.org/alerts --owner ana@example.org
    """
    import msgspec

    from relay.alerts.webhook_message import new_secret
    from relay.courier import check_target

    if (stream_id is None) == (owner is None):
        raise click.UsageError("say whose alerts: --stream STREAM or --owner USER")
    if stream_id is not None:
        try:
            msgspec.convert(stream_id, StreamId)
        except msgspec.ValidationError:
            raise click.BadParameter(f"{stream_id!r} is no stream id") from None
    check_target(url, plain=bool(configuration().settings.webhook_networks))
    secret = new_secret()

    async def add(store: Store) -> str:
        owner_id = None if owner is None else await store.sessions.find_user(owner)
        return await store.webhooks.add(url, secret, owner_id=owner_id, stream_id=stream_id)

    click.echo(f"{with_store(add)}\n{secret}")


@webhook.command(name="list")
@settings_options(*STORE)
def webhook_list() -> None:
    """List the webhooks, and how each fares.

    \b
    Example:
      relay webhook list
    """

    async def show(store: Store) -> str:
        return "\n".join(_line(each, waiting) for each, waiting in await store.webhooks.all())

    click.echo(with_store(show) or "there are no webhooks")


@webhook.command(name="remove")
@click.argument("webhook_id", metavar="ID")
@settings_options(*STORE)
def webhook_remove(webhook_id: str) -> None:
    """Post no more alerts there.

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
@settings_options(*SETTINGS)
def webhook_test(webhook_id: str) -> None:
    """Post a message of type `test`; one that was given up goes on when that is taken.

    \b
    Example:
      relay webhook test wh_0123456789abcdef
    """
    networks = configuration().settings.webhook_networks

    async def post(store: Store) -> str:
        found = await store.webhooks.find(webhook_id)
        await _try(found, networks)
        goes_on = await store.webhooks.go_on(webhook_id)
        return f"{webhook_id} took it{', and goes on where it was given up' * goes_on}"

    click.echo(with_store(post))


async def _try(webhook: Webhook, networks: tuple[str, ...]) -> None:
    """`ConfigError` when it is not taken."""
    import secrets

    import trio

    from relay.alerts import webhook_message, webhooks
    from relay.courier import Undelivered, open_courier

    body = webhook_message.trial_message()
    headers = webhook_message.headers(webhook.secret, f"msg_{secrets.token_hex(12)}", body)
    try:
        async with open_courier(networks) as courier:
            with trio.fail_after(webhooks.ANSWER):
                await courier.post(webhook.url, body, headers)
    except trio.TooSlowError:
        raise ConfigError(f"no answer within {webhooks.ANSWER:g} s") from None
    except Undelivered as why:
        raise ConfigError(f"it was not taken: {why}") from None


def _line(webhook: Webhook, waiting: int) -> str:
    whose = f"owner={webhook.owner_id}" if webhook.owner_id else f"stream={webhook.stream_id}"
    state = "works"
    if webhook.given_up_at is not None:
        state = f"given up {webhook.given_up_at:%Y-%m-%d %H:%M}"
    elif webhook.failures:
        state = f"fails, {webhook.failures} times"
        if webhook.try_again_at is not None:
            state += f", next {webhook.try_again_at:%H:%M:%S}"
    parts = [
        *(webhook.webhook_id, whose, webhook.url, state),
        f"posted={webhook.delivered}",
        f"waiting={waiting if waiting < 1000 else 'more than 999'}",
    ]
    if webhook.last_error:
        parts.append(f"error={webhook.last_error}")
    return "\t".join(parts)
