"""A relay without sockets or a database: each module doubles one thing that it leans on."""

from tests.unit.memory.alerts import MemoryAlertStore, MemoryStreamOwners
from tests.unit.memory.audit import MemoryAuditStore
from tests.unit.memory.client import Client, Closed
from tests.unit.memory.link import SIZE, MemoryLink, SocketBuffer, link_pair
from tests.unit.memory.relay import MemoryRelay, open_relay
from tests.unit.memory.renderer import MemoryRenderer, jpeg
from tests.unit.memory.verifier import (
    ANN,
    BOB,
    CAMERA,
    SENTRY,
    MemoryChangeFeed,
    MemoryVerifier,
    user,
)

__all__ = [
    "ANN",
    "BOB",
    "CAMERA",
    "SENTRY",
    "SIZE",
    "Client",
    "Closed",
    "MemoryAlertStore",
    "MemoryAuditStore",
    "MemoryChangeFeed",
    "MemoryLink",
    "MemoryRelay",
    "MemoryRenderer",
    "MemoryStreamOwners",
    "MemoryVerifier",
    "SocketBuffer",
    "jpeg",
    "link_pair",
    "open_relay",
    "user",
]
