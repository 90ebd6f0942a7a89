"""What is published to MQTT brokers: topics, payloads, and the discovery of Home Assistant.

https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import msgspec
from attrs import frozen

from relay import __version__
from relay.alerts.event import alert_event
from relay.alerts.targets.delivery import Delivery
from relay.model.alerts.alert import StoredAlert
from relay.model.targets.alert_target import SEVERITY_RANKS, AlertTarget
from relay.model.targets.stream_event import ALERT_EVENT, StreamEvent, StreamEventKind
from relay.protocol.codec import JSON_CODEC

MAX_TOPIC_PART_BYTES = 256
"""Of a stream's id in a topic. A longer one ends in its hash."""
MAX_BRIEF_MESSAGE_BYTES = 256
"""Of the text of an alert for a broker that takes no larger one."""
DEFAULT_DISCOVERY_PREFIX = "homeassistant"
STATES: dict[StreamEventKind, str] = {
    "stream.online": "online",
    "stream.offline": "offline",
    "stream.watched": "watched",
    "stream.unwatched": "online",
}
"""What a stream is after an event."""
_PLAIN = re.compile(rb"[A-Za-z0-9._:~-]")


@frozen
class MqttMessage:
    """A message for a broker."""

    topic: str
    payload: bytes
    retain: bool = False


@frozen
class StreamTopics:
    """The topics of a stream."""

    base: str
    """The topic that all others are below."""
    stream_id: str

    @property
    def alert(self) -> str:
        return self._topic("alert")

    @property
    def state(self) -> str:
        return self._topic("state")

    @property
    def picture(self) -> str:
        return self._topic("picture")

    def _topic(self, what: str) -> str:
        return f"{self.base}/{escaped(self.stream_id)}/{what}"


def escaped(stream_id: str) -> str:
    """A stream's id as one level of a topic: percent-encoded, but for letters, digits and `._:~-`.
    Different for each id."""
    encoded = stream_id.encode(errors="surrogatepass")
    text = "".join(chr(byte) if _PLAIN.match(bytes([byte])) else f"%{byte:02X}" for byte in encoded)
    if len(text) <= MAX_TOPIC_PART_BYTES:
        return text
    return f"{text[: MAX_TOPIC_PART_BYTES - 33]}~{_hash(stream_id)}"


def status_topic(base: str) -> str:
    """Where relay says whether it is there."""
    return f"{base}/status"


def tells_state(target: AlertTarget) -> bool:
    """Whether the target is told when streams go online and offline."""
    return {"stream.online", "stream.offline"} <= set(target.rules.events)


def tells_watched(target: AlertTarget) -> bool:
    return {"stream.watched", "stream.unwatched"} <= set(target.rules.events)


def state_message(topics: StreamTopics, state: str) -> MqttMessage:
    return MqttMessage(topics.state, state.encode(), retain=True)


def event_message(topics: StreamTopics, event: StreamEvent, target: AlertTarget) -> MqttMessage:
    """What a stream is after an event."""
    state = STATES[event.kind]
    if state == "watched" and not tells_watched(target):
        state = "online"
    return state_message(topics, state)


def alert_message(
    topics: StreamTopics, delivery: Delivery, picture: str | None, *, brief: bool = False
) -> MqttMessage:
    """An alert. `event_type` is for the event entities of Home Assistant. A `brief` one is without
    metadata, and its text is cut."""
    alert = delivery.event
    assert isinstance(alert, StoredAlert)
    encoded = JSON_CODEC.encode(alert_event(alert))
    data: dict[str, Any] = msgspec.json.decode(encoded, type=dict[str, msgspec.Raw])
    del data["type"]
    data["event_type"] = alert.severity
    if delivery.suppressed:
        data["suppressed"] = delivery.suppressed
    if picture is not None:
        data["picture"] = picture
    if brief:
        data.pop("metadata", None)
        encoded_text = alert.message.encode(errors="replace")[:MAX_BRIEF_MESSAGE_BYTES]
        data |= {"message": encoded_text.decode(errors="ignore"), "truncated": True}
    return MqttMessage(topics.alert, msgspec.json.encode(data))


def discovery_topic(target: AlertTarget, topics: StreamTopics) -> str | None:
    """Where Home Assistant looks for a stream's device; None if the target wants no discovery."""
    prefix = target.options.get("discovery_prefix")
    return f"{prefix}/device/{_device_id(topics)}/config" if prefix else None


def discovery_message(
    target: AlertTarget, topics: StreamTopics, public_url: str | None
) -> MqttMessage | None:
    """The device that Home Assistant is to show for a stream, with what the target is told of."""
    topic = discovery_topic(target, topics)
    if topic is None:
        return None
    device: dict[str, Any] = {
        "identifiers": [_device_id(topics)],
        "name": topics.stream_id,
        "manufacturer": "relay",
        "model": "stream",
    }
    if public_url is not None:
        device["configuration_url"] = public_url
    content = {
        "device": device,
        "origin": {"name": "relay", "sw_version": __version__},
        "availability": [{"topic": status_topic(topics.base)}],
        "components": _components(target, topics),
        "qos": 1,
    }
    return MqttMessage(topic, msgspec.json.encode(content), retain=True)


def _components(target: AlertTarget, topics: StreamTopics) -> dict[str, dict[str, Any]]:
    unique = _device_id(topics)
    found: dict[str, dict[str, Any]] = {}
    if ALERT_EVENT in target.rules.events:
        found["alert"] = {
            "platform": "event",
            "name": "Alert",
            "state_topic": topics.alert,
            "event_types": [*SEVERITY_RANKS],
            "icon": "mdi:bell-alert",
        }
        if target.options.get("picture"):
            found["picture"] = {
                "platform": "image",
                "name": "Picture",
                "url_topic": topics.picture,
                "content_type": "image/jpeg",
            }
    if tells_state(target):
        found["online"] = {
            "platform": "binary_sensor",
            "name": "Online",
            "device_class": "connectivity",
            "state_topic": topics.state,
            "value_template": "{{ 'OFF' if value == 'offline' else 'ON' }}",
        }
        if tells_watched(target):
            found["watched"] = {
                "platform": "binary_sensor",
                "name": "Watched",
                "state_topic": topics.state,
                "value_template": "{{ 'ON' if value == 'watched' else 'OFF' }}",
                "icon": "mdi:eye",
            }
    for name, component in found.items():
        component["unique_id"] = f"{unique}_{name}"
    return found


def withdrawals(target: AlertTarget, topics: StreamTopics) -> list[MqttMessage]:
    """What removes from the broker all that it retains of a stream."""
    config = discovery_topic(target, topics)
    found = [topics.state] if config is None else [config, topics.state]
    return [MqttMessage(topic, b"", retain=True) for topic in found]


def _device_id(topics: StreamTopics) -> str:
    """Of the characters that Home Assistant takes, and another for each relay and stream."""
    readable = re.sub(r"[^A-Za-z0-9_-]", "_", topics.stream_id)[:64]
    return f"relay_{readable}_{_hash(f'{topics.base}/{topics.stream_id}')[:12]}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]
