"""What a relay answers to those who operate it."""

from __future__ import annotations

from typing import Any

STATS: dict[str, Any] = {
    "connections": 12,
    "authenticated": 10,
    "unauthenticated": 2,
    "connections_accepted": 40,
    "verifications": 5,
    "frames_accepted": 1000,
    "alerts_stored": 4,
    "alerts_delivered": 8,
    "profile": "default",
    "streams": {"online": 1, "streaming": 2, "consumers": 9},
    "frames_to_consumers": {
        "accepted": 3000,
        "written": 2900,
        "waiting": 3,
        "dropped": {"superseded": 90, "left": 7},
    },
    "frame_age": {"0.001": 100, "0.01": 0, "inf": 0},
    "endings": {"client_closed": 28, "auth_failed": 0},
    "limits_hit": {"messages": 3},
}
READY: dict[str, Any] = {
    "ready": True,
    "draining": False,
    "database": "ok",
    "services": {"verification": "running", "audit": "failed"},
}
CONSUMER: dict[str, Any] = {
    "connection": 7,
    "frames": 100,
    "written": 90,
    "dropped": {"superseded": 10},
    "waiting": 1,
}
LINK: dict[str, Any] = {
    "roundTripSeconds": 0.0412,
    "bytesPerSecond": 30_000,
    "bytesUnderWay": 16_100,
}
STREAM: dict[str, Any] = {
    "streamId": "front-door",
    "status": "streaming",
    "epoch": 1,
    "frames": 500,
    "producer": 3,
    "consumers": [CONSUMER, CONSUMER],
}
