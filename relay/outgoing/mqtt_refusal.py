"""Why a broker does not take one message, though it takes others."""

from __future__ import annotations

from relay.outgoing.webhook_client import Undelivered


class MessageRefused(Undelivered):
    """The broker does not take this message. The connection goes on."""

    def __init__(self, why: str, *, is_unfit: bool = False) -> None:
        super().__init__(why)
        self.is_unfit = is_unfit
        """Whether it never will, for what the message is: its size, its topic."""
