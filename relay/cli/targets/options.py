"""What the commands for webhooks and for other targets have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

from relay.cli.grouped_help import GroupedOption
from relay.cli.options import STORE_SETTINGS, duration
from relay.errors import ConfigError
from relay.model.access.identity import ANY_STREAM
from relay.model.targets.alert_target import MAX_COOLDOWN, SEVERITY_RANKS, AlertTarget, TargetRules
from relay.model.targets.push_subscription import service_of
from relay.model.targets.stream_event import ALERT_EVENT, STREAM_EVENT_KINDS
from relay.protocol.messages import STREAM_ID_PATTERN, STREAM_PREFIX_PATTERN

if TYPE_CHECKING:
    from relay.postgres.store import Store
    from relay.settings.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

TARGET_SETTINGS = (*STORE_SETTINGS, "webhook_networks")
TEST_SETTINGS = (*TARGET_SETTINGS, "push_services", "push_key", "push_contact")


def _streams(_context: click.Context, _parameter: click.Parameter, text: str | None) -> str | None:
    if text is None or text == ANY_STREAM or re.match(STREAM_ID_PATTERN, text):
        return text
    if not re.match(STREAM_PREFIX_PATTERN, text):
        raise click.BadParameter(
            f"{text!r} is not a stream id, a prefix that ends in '*', or '{ANY_STREAM}'"
        )
    return text


def _cooldown(context: click.Context, parameter: click.Parameter, text: str | None) -> int:
    parsed = duration(context, parameter, text)
    seconds = round((parsed or timedelta(0)).total_seconds())
    if seconds > MAX_COOLDOWN:
        raise click.BadParameter(f"a cooldown lasts 7d at most, not {text}")
    return seconds


def rule_options(command: F) -> F:
    """Options that say which events a target gets: by default, alerts."""
    return rule_options_with([ALERT_EVENT])(command)


def rule_options_with(default_events: Sequence[str]) -> Callable[[F], F]:
    """The same, with these kinds of events by default."""
    return partial(_add_rule_options, default_events)


def _add_rule_options(default_events: Sequence[str], command: F) -> F:
    rules = "Rules"
    kinds = [ALERT_EVENT, *STREAM_EVENT_KINDS]
    for option in reversed(
        [
            click.option(
                "--stream",
                "streams",
                metavar="STREAM",
                callback=_streams,
                help="Events of this stream; 'garage-*' stands for all ids with that prefix, '*'"
                " for all streams.",
            ),
            click.option(
                "--owner",
                metavar="USER",
                help="Events of all streams of this user (id or e-mail address).",
            ),
            click.option(
                "--event",
                "events",
                cls=GroupedOption,
                group=rules,
                multiple=True,
                type=click.Choice(kinds),
                default=[*default_events],
                show_default=True,
                help="Kind of events to deliver. Repeatable.",
            ),
            click.option(
                "--min-severity",
                cls=GroupedOption,
                group=rules,
                type=click.Choice([*SEVERITY_RANKS]),
                default="low",
                show_default=True,
                help="Leave out alerts that are less severe.",
            ),
            click.option(
                "--cooldown",
                cls=GroupedOption,
                group=rules,
                metavar="TIME",
                callback=_cooldown,
                help="After an event, suppress further ones of the same kind and stream for this"
                " time, such as 5m. The next one says how many there were.",
            ),
        ]
    ):
        command = option(command)
    return command


def rules_from(
    owner: str | None, *, streams: str | None, events: tuple[str, ...], **rules: Any
) -> tuple[str | None, TargetRules]:
    """The stream, if it is a single one, and the rules, as `rule_options` gives them."""
    if streams is None and owner is None:
        raise click.UsageError("give either --stream STREAM or --owner USER")
    prefix = streams[:-1] if streams is not None and streams.endswith(ANY_STREAM) else None
    stream_id = streams if prefix is None else None
    if stream_id is not None and owner is not None:
        raise click.UsageError(
            "give either --stream STREAM or --owner USER; both only if STREAM is a prefix such as"
            " 'garage-*'"
        )
    return stream_id, TargetRules(tuple(dict.fromkeys(events)), stream_prefix=prefix, **rules)


async def listed(store: Store, kind: str | None = None) -> str:
    """The targets with their state, a line for each."""
    shown = await store.alert_targets.all(kind)
    return "\n".join(_line(each, waiting, kind) for each, waiting in shown)


async def try_target(
    store: Store, settings: Settings, target_id: str, kind: str | None = None
) -> str:
    """Deliver a test message, and resume the target if it was given up; `ConfigError` if it is not
    accepted."""
    from relay.alerts.outbox import attempt
    from relay.alerts.targets.delivery import Delivered, GoneForGood, RetryLater
    from relay.alerts.targets.setup import PushParts, open_adapters

    target = await store.alert_targets.find(target_id, kind)
    push = PushParts.build(settings, store.push_subscriptions)
    async with open_adapters(settings, push) as targets:
        if target.kind not in targets.adapters:
            raise ConfigError(f"this version of relay knows no targets of the kind {target.kind!r}")
        outcome = await attempt(targets.adapters[target.kind], target, None)
    if isinstance(outcome, RetryLater | GoneForGood):
        raise ConfigError(f"the test message was not delivered: {outcome.why}")
    if not isinstance(outcome, Delivered):
        raise ConfigError(f"the {kind or 'target'} takes no test message")
    goes_on = await store.alert_targets.resume(target_id)
    return f"{target_id} accepted it{', and deliveries resume where they stopped' * goes_on}"


def _line(target: AlertTarget, waiting: int, kind: str | None) -> str:
    state = "ok"
    if target.given_up_at is not None:
        state = f"given up {target.given_up_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    elif target.failures:
        state = f"failed {target.failures} times"
        if target.try_again_at is not None:
            state += f", next attempt at {target.try_again_at.astimezone(UTC):%H:%M:%S} UTC"
    parts = [
        *(target.target_id, *([] if kind else [target.kind]), _scope(target), _url(target), state),
        f"{'posted' if kind else 'delivered'}={target.delivered}",
        f"waiting={waiting if waiting < 1000 else 'more than 999'}",
        *_rules(target),
    ]
    if target.last_error:
        parts.append(f"error={target.last_error}")
    return "\t".join(parts)


def _url(target: AlertTarget) -> str:
    """Where it is delivered; of a browser, whose URL lets others send to it, the host."""
    return target.url if target.viewer is None else service_of(target)


def _scope(target: AlertTarget) -> str:
    if target.viewer is not None:
        return f"user={target.viewer.user_id} streams={','.join(target.viewer.streams)}"
    if target.stream_id is not None:
        return f"stream={target.stream_id}"
    prefix = target.rules.stream_prefix
    scope = [] if target.owner_id is None else [f"owner={target.owner_id}"]
    if prefix is not None:
        scope.append(f"stream={prefix}*")
    return " ".join(scope)


def _rules(target: AlertTarget) -> list[str]:
    """The rules that are not as they are by default."""
    rules = target.rules
    told = []
    if rules.events != (ALERT_EVENT,):
        told.append(f"events={','.join(rules.events)}")
    if rules.min_severity != "low":
        told.append(f"min-severity={rules.min_severity}")
    if rules.cooldown:
        told += [f"cooldown={rules.cooldown}s", f"suppressed={target.suppressed}"]
    return told
