"""A webhook as it is stored."""

from __future__ import annotations

from datetime import datetime

from attrs import field, frozen


@frozen
class Webhook:
    """Where alerts are posted, and how far the deliveries have got."""

    webhook_id: str
    url: str = field(repr=False)
    """It may contain a secret of the receiver."""
    secret: str = field(repr=False)
    position: int
    """The id of the last alert that was delivered."""
    owner_id: str | None
    """Post the alerts of all streams of this user; None: of `stream_id` only."""
    stream_id: str | None
    created_at: datetime
    delivered: int
    failures: int
    """Since the last success."""
    try_again_at: datetime | None
    last_error: str | None
    given_up_at: datetime | None
