"""The settings of one worker of several."""

from __future__ import annotations

from typing import Any

import attrs
import msgspec

from relay.settings.settings import Settings

DIVIDED_TOTALS = (
    *("max_connections", "max_connections_per_address"),
    *("receive_buffer", "send_buffer", "reply_buffer", "frame_buffer"),
)
"""Settings that are for the whole machine. `max_unauthenticated` is counted by the parent."""
DIVIDED_RATES = ("connection_rate", "failed_auth_rate", "unknown_token_rate")
"""Rates of an address."""


def settings_of_worker(settings: Settings, workers: int) -> Settings:
    """The settings with the worker's share of what is limited for the whole machine, rounded up."""
    changed: dict[str, Any] = {
        name: _divide(getattr(settings, name), workers) for name in DIVIDED_TOTALS
    }
    for name in ("receive_buffer", "frame_buffer"):  # one message must fit
        changed[name] = min(getattr(settings, name), max(changed[name], settings.max_message_size))
    for name in DIVIDED_RATES:
        count, _, unit = getattr(settings, name).partition("/")
        changed[name] = f"{_divide(int(count), workers)}/{unit}"
    changed["rendition_cores"] = settings.rendition_cores / workers
    changed["workers"] = 1
    return attrs.evolve(settings, **changed)


def _divide(total: int, workers: int) -> int:
    return -(-total // workers)


def as_plain(settings: Settings) -> dict[str, Any]:
    """The settings in values that a message can hold."""
    plain: dict[str, Any] = msgspec.to_builtins(attrs.asdict(settings, recurse=False), enc_hook=str)
    return plain


def from_plain(plain: dict[str, Any]) -> Settings:
    """The settings as they were; `msgspec.ValidationError`."""
    return msgspec.convert(plain, Settings, dec_hook=lambda kind, value: kind(value))
