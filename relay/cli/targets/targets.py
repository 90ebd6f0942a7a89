"""`relay target`: where alerts and stream events are delivered, of whatever kind."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from attrs import evolve

from relay.cli.grouped_help import GroupedCommand, GroupedGroup
from relay.cli.options import STORE_SETTINGS, configuration, duration, settings_options
from relay.cli.running import with_store
from relay.cli.targets.files import authority_in, check_login, credentials_in, picture_options
from relay.cli.targets.options import (
    TARGET_SETTINGS,
    TEST_SETTINGS,
    listed,
    rule_options,
    rule_options_with,
    rules_from,
    try_target,
)
from relay.errors import ConfigError
from relay.model.targets.alert_target import NewTarget
from relay.model.targets.stream_event import ALERT_EVENT, STREAM_EVENT_KINDS
from relay.settings.loading import MQTT_CREDENTIALS_VARIABLE, NTFY_CREDENTIALS_VARIABLE

if TYPE_CHECKING:
    from datetime import timedelta

    from relay.postgres.store import Store

DISCOVERY_PREFIX_PATTERN = r"[A-Za-z0-9._~-]{1,64}(/[A-Za-z0-9._~-]{1,64}){0,3}"
PICTURE_NEEDS_URL = "--picture needs the setting public_url, which the links begin with"


@click.group(cls=GroupedGroup)
def target() -> None:
    """Deliver alerts and stream events to where people are.

    Webhooks are targets, too: `relay webhook` adds them.

    \b
    To phones, by ntfy:   relay target add ntfy https://ntfy.sh/mine --stream door
    To Home Assistant:    relay target add mqtt mqtts://broker --stream '*'
    Try one:              relay target test ntfy_0123456789abcdef
    See their state:      relay target list
    """


@target.group(cls=GroupedGroup)
def add() -> None:
    """Add a target of one of these kinds, and print its id.

    \b
    To phones, by ntfy:   relay target add ntfy https://ntfy.sh/mine --stream door
    To Home Assistant:    relay target add mqtt mqtts://broker --stream '*'
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
    from relay.alerts.targets.ntfy import check_credentials, check_ntfy_url
    from relay.outgoing.webhook_client import check_webhook_url

    settings = configuration().settings
    stream_id, rules = rules_from(owner, **given)
    check_webhook_url(url, plain=bool(settings.webhook_networks))
    check_ntfy_url(url)
    if picture and settings.public_url is None:
        raise ConfigError(PICTURE_NEEDS_URL)
    options = picture_options(picture_for, wanted=picture)
    secret = credentials_in(credentials_file, NTFY_CREDENTIALS_VARIABLE, check_credentials)

    _add(NewTarget(url, secret, "ntfy", None, stream_id, rules, options), owner)


@add.command(name="mqtt", cls=GroupedCommand)
@click.argument("url", metavar="URL")
@click.option(
    "--credentials-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"Read USER:PASSWORD from this file instead of {MQTT_CREDENTIALS_VARIABLE}.",
)
@click.option(
    "--ca-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Trust the certificates in this file (PEM) instead of those of the system.",
)
@click.option(
    "--discovery/--no-discovery",
    default=True,
    help="Let Home Assistant find the streams, each as a device.",
)
@click.option(
    "--discovery-prefix",
    default="homeassistant",
    show_default=True,
    metavar="TOPIC",
    help="Home Assistant's discovery prefix.",
)
@click.option(
    "--picture",
    is_flag=True,
    help="Publish a link to the newest picture with each alert, if the stream sends JPEG. Everybody"
    " who may read the topics sees that stream until the link expires. Needs public_url.",
)
@click.option(
    "--picture-for",
    default="6h",
    show_default=True,
    metavar="TIME",
    callback=duration,
    help="Lifetime of these links, 24h at most.",
)
@rule_options_with([ALERT_EVENT, *STREAM_EVENT_KINDS])
@settings_options(*TARGET_SETTINGS, "public_url")
def add_mqtt(
    url: str,
    owner: str | None,
    credentials_file: Path | None,
    ca_file: Path | None,
    *,
    discovery: bool,
    discovery_prefix: str,
    picture: bool,
    picture_for: timedelta,
    **given: Any,
) -> None:
    """Publish to an MQTT broker, such as that of Home Assistant.

    Alerts go to relay/STREAM/alert, and the state of each stream (online, offline or watched) is
    retained at relay/STREAM/state; the setting mqtt_topic replaces `relay`. URL is mqtts://HOST, or
    mqtt://HOST for networks in webhook_networks. Add one target for each broker.

    \b
    Example:
      relay target add mqtt mqtts://broker.example.org --stream '*' --credentials-file mqtt
      relay target add mqtt mqtt://192.168.1.5 --stream '*' --webhook-networks 192.168.1.0/24
    """
    from relay.alerts.targets.mqtt import check_mqtt_installed
    from relay.outgoing.mqtt_broker import parse_broker_url

    settings = configuration().settings
    check_mqtt_installed()
    stream_id, rules = rules_from(owner, **given)
    if rules.cooldown and set(rules.events) != {ALERT_EVENT}:
        raise click.UsageError(
            "--cooldown is for alerts alone (--event alert), since a state that is left out would"
            " stay wrong: add a target for each"
        )
    parse_broker_url(url, plain=bool(settings.webhook_networks))
    if picture and settings.public_url is None:
        raise ConfigError(PICTURE_NEEDS_URL)
    options = picture_options(picture_for, wanted=picture)
    if discovery:
        if not re.fullmatch(DISCOVERY_PREFIX_PATTERN, discovery_prefix):
            raise click.BadParameter(f"{discovery_prefix!r} is no topic such as homeassistant")
        options["discovery_prefix"] = discovery_prefix
    if ca_file is not None:
        options["authority"] = authority_in(ca_file)
    secret = credentials_in(credentials_file, MQTT_CREDENTIALS_VARIABLE, check_login)
    _add(NewTarget(url, secret, "mqtt", None, stream_id, rules, options), owner)


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
@settings_options(*TARGET_SETTINGS, "mqtt_topic")
def target_remove(target_id: str) -> None:
    """Remove a target, revoke the links that were made for it, and remove what an MQTT broker
    retains of its streams.

    \b
    Example:
      relay target remove ntfy_0123456789abcdef
    """
    from relay.cli.targets.removal import remove_target

    settings = configuration().settings

    async def remove(store: Store) -> str:
        return await remove_target(store, settings, target_id)

    click.echo(with_store(remove))


@target.command(name="test")
@click.argument("target_id", metavar="ID")
@settings_options(*TEST_SETTINGS, "mqtt_topic")
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


def _add(new: NewTarget, owner: str | None) -> None:
    async def insert(store: Store) -> str:
        owner_id = None if owner is None else await store.sessions.find_user(owner)
        return await store.alert_targets.add(evolve(new, owner_id=owner_id))

    click.echo(with_store(insert))
