"""The settings of one worker of several."""

from __future__ import annotations

from typing import Any

import attrs
import msgspec

from relay.settings.settings import Settings

DIVIDED_CAPS = ("max_connections", "max_connections_per_address")
"""Numbers of connections. `max_unauthenticated` is not divided: the parent counts it."""
DIVIDED_BUFFERS = {
    "receive_buffer": "max_message_size",
    "frame_buffer": "max_message_size",
    "send_buffer": None,
    "reply_buffer": None,
}
"""Bytes, and the setting with what must fit into the share of one worker."""
MIN_BUFFER_BYTES = 1024
"""The least that these settings may be."""
DIVIDED_RATES = ("connection_rate", "unknown_token_rate")
"""Rates of an address. `failed_auth_rate` is not divided: the parent counts."""


def settings_of_worker(settings: Settings, workers: int) -> Settings:
    """The settings with the worker's share of what is limited for the whole machine, rounded up."""
    changed: dict[str, Any] = {
        name: _divide(getattr(settings, name), workers) for name in DIVIDED_CAPS
    }
    for name, fits in DIVIDED_BUFFERS.items():
        total = getattr(settings, name)
        least = MIN_BUFFER_BYTES if fits is None else getattr(settings, fits)
        changed[name] = min(total, max(_divide(total, workers), least))
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
