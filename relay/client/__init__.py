"""A client of the relay for scripts, the demo and the load tester. Floor 2."""

from relay.client.client import Client, connect
from relay.client.errors import ClientClosed, Disconnected, ServerError
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
from relay.client.manners import Manners
from relay.client.publication import Publication
from relay.client.relay_client import RelayClient, open_relay_client
from relay.client.shaping import Meter, ShapedStream
from relay.client.subscription import Subscription
from relay.client.tokens import TokenRequest, TokenSource, TokenUnavailable
from relay.client.unread import ClientEvent, Demand, State, StateChange, StreamEntry, Streams
from relay.transport.dial import DialFailed

__all__ = [
    "Alert",
    "AlertAccepted",
    "Authenticated",
    "Client",
    "ClientClosed",
    "ClientEvent",
    "Demand",
    "DialFailed",
    "Disconnected",
    "Event",
    "Frame",
    "Manners",
    "Meter",
    "Notice",
    "Problem",
    "Publication",
    "Registered",
    "RelayClient",
    "ServerError",
    "ShapedStream",
    "State",
    "StateChange",
    "Status",
    "StreamEntry",
    "Streams",
    "Subscribed",
    "Subscription",
    "TokenRequest",
    "TokenSource",
    "TokenUnavailable",
    "Unsubscribed",
    "connect",
    "open_relay_client",
]
