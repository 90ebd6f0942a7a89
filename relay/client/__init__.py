"""A client of the relay for applications on Trio, scripts, the demo and the load tester."""

from relay.client.errors import ClientClosed, DialFailed, Disconnected, ServerError
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
from relay.client.reconnect_policy import ReconnectPolicy
from relay.client.relay_client import RelayClient, open_relay_client
from relay.client.shaping import Meter, ShapedStream
from relay.client.simple_client import SimpleClient, connect
from relay.client.state.event_queue import (
    ClientEvent,
    ClientState,
    Demand,
    KeyframeWanted,
    StateChange,
    StreamEntry,
    Streams,
)
from relay.client.state.picture_plan import PicturePlan, PlannedPicture
from relay.client.state.publication import Publication
from relay.client.state.subscription import Subscription
from relay.client.tokens import TokenRequest, TokenSource, TokenUnavailable
from relay.protocol.messages import Layer

__all__ = [
    "Alert",
    "AlertAccepted",
    "Authenticated",
    "ClientClosed",
    "ClientEvent",
    "ClientState",
    "Demand",
    "DialFailed",
    "Disconnected",
    "Event",
    "Frame",
    "KeyframeWanted",
    "Layer",
    "Meter",
    "Notice",
    "PicturePlan",
    "PlannedPicture",
    "Problem",
    "Publication",
    "ReconnectPolicy",
    "Registered",
    "RelayClient",
    "ServerError",
    "ShapedStream",
    "SimpleClient",
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
