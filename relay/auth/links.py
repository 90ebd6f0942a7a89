"""Verifies the capabilities of links, which are no tokens: they let nobody in but to one answer."""

from __future__ import annotations

import re
from typing import Protocol

from attrs import frozen

from relay.errors import StoreRejects
from relay.model.access.identity import Identity, User
from relay.model.access.link import LINK_PREFIX

_CAPABILITY = re.compile(re.escape(LINK_PREFIX) + r"[A-Za-z0-9_-]{22}")


class LinkCapabilities(Protocol):
    """The links, by their capabilities."""

    async def find(self, capability: str) -> User | None:
        """The maker of a link, with the link; None if it is not valid; `StoreUnavailable`."""


@frozen(eq=False, repr=False)
class LinkVerifier:
    """A `Verifier` of capabilities."""

    _links: LinkCapabilities

    async def verify(self, token: str) -> Identity | None:
        """The maker of the link with this capability, with the link."""
        if _CAPABILITY.fullmatch(token) is None:
            return None
        try:
            return await self._links.find(token)
        except StoreRejects:
            return None
