"""A client of the relay for scripts, the demo and the load tester. Floor 2."""

from relay.client.client import Client, connect
from relay.client.errors import Disconnected, ServerError
from relay.client.events import (
    Alert,
    AlertAccepted,
    Authenticated,
    Event,
    Frame,
    Notice,
    Problem,
    Registered,
    Status,
    Subscribed,
    Unsubscribed,
)
from relay.client.shaping import Meter, ShapedStream
from relay.transport.dial import DialFailed

__all__ = [
    "Alert",
    "AlertAccepted",
    "Authenticated",
    "Client",
    "DialFailed",
    "Disconnected",
    "Event",
    "Frame",
    "Meter",
    "Notice",
    "Problem",
    "Registered",
    "ServerError",
    "ShapedStream",
    "Status",
    "Subscribed",
    "Unsubscribed",
    "connect",
]
