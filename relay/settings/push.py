"""Types and checks of the settings about notifications in browsers (Web Push)."""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta

from relay.errors import ConfigError
from relay.model.targets.push_service import NO_PUSH_SERVICES, PUSH_SERVICE_RULE, PushService

_SERVICES = f"a list of push services, each {PUSH_SERVICE_RULE}; or none"
_CONTACT = "an address such as mailto:ops@example.org or https://example.org/contact"

PushServices = Annotated[tuple[str, ...], Meta(title="SERVICE,…", description=_SERVICES)]
Contact = Annotated[str, Meta(title="URL", description=_CONTACT)]


def check_push_services(_settings: object, attribute: object, services: tuple[str, ...]) -> None:
    name = getattr(attribute, "name", "")
    if services == (NO_PUSH_SERVICES,):
        return
    for text in services:
        if text == NO_PUSH_SERVICES:
            raise ConfigError(f"{name}: {text!r} stands alone, for no push service at all")
        if PushService.parse(text) is None:
            raise ConfigError(f"{name}: expected {_SERVICES}, not {text!r}")


def check_push_key(_settings: object, attribute: object, key: str | None) -> None:
    """`ConfigError`, which does not show the key."""
    if key is not None and not re.fullmatch(r"[A-Za-z0-9_-]{43}=?", key):
        name = getattr(attribute, "name", "")
        raise ConfigError(
            f"{name}: expected the private key of VAPID, 43 characters of base64url, as"
            " `npx web-push generate-vapid-keys` prints it"
        )


def check_contact(_settings: object, attribute: object, contact: str | None) -> None:
    wanted = r"(mailto:[^\s@]+@[^\s@]+|https://[\x21-\x7e]+)"
    if contact is not None and not re.fullmatch(wanted, contact):
        name = getattr(attribute, "name", "")
        raise ConfigError(f"{name}: expected {_CONTACT}, not {contact!r}")
