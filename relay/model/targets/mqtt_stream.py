"""What is so of a stream, for MQTT."""

from __future__ import annotations

from attrs import frozen


@frozen
class MqttStream:
    """A stream that a target is told of."""

    stream_id: str
    online: bool
    watched: bool


@frozen
class AnnouncedNow:
    """What has become of streams that were to be announced."""

    known: frozenset[str]
    """Those of which messages may be retained."""
    new: frozenset[str]
    """Those among them that were not known before."""
