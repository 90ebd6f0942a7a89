"""One MQTT session with a broker, without I/O: bytes in, bytes out. paho-mqtt speaks the protocol.

paho is given a socket that is two buffers. What it is given to read was looked at first
(`PacketCheck`), since a broker may send packets of 256 MB, and paho keeps what a broker says it
will complete later. This is MQTT 5, whose acknowledgements say whether a message was refused, or
3.1.1 for brokers that know no newer one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from attrs import define, field, frozen
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from relay.errors import RelayError
from relay.outgoing.mqtt_refusal import MessageRefused
from relay.outgoing.webhook_client import Undelivered

MAX_PACKET_BYTES = 64 * 1024
"""Of a packet from the broker; it has reason for some dozens of bytes."""
MAX_UNTAKEN_BYTES = 256 * 1024
"""Of what is to be sent and was not taken yet."""
MAX_UNACKNOWLEDGED_MESSAGES = 20
"""That are not acknowledged."""
PUBLISH_OVERHEAD = 16
"""Bytes of a PUBLISH beside its topic and its payload, at most: type, length, id, properties."""
MQTT_KEEPALIVE = 30
"""Seconds without a packet after which one asks whether the other is alive."""

_EXPECTED = {2, 3, 4, 9, 13, 14}
"""CONNACK, PUBLISH, PUBACK, SUBACK, PINGRESP and DISCONNECT: the packets that a broker may send to
a client that publishes with QoS 1 and subscribes with QoS 0."""
_PUBLISH, _PUBACK = 3, 4
_QOS_BITS = 0x06
"""The flags of a PUBLISH that are not to be set; of other packets, none is."""
_UNKNOWN_VERSION = {1, 0x84}
"""Reasons of a CONNACK."""
_PUBACK_REASON_AT = 2
"""In the body of a PUBACK, behind the id of the message."""
_UNSPECIFIED, _BAD_TOPIC, _TOO_LARGE, _BAD_PAYLOAD = 0x80, 0x90, 0x95, 0x99
_PUBACK_FAILURES = {_UNSPECIFIED, 0x83, 0x87, _BAD_TOPIC, 0x91, 0x97, _BAD_PAYLOAD}
"""Those that the standard knows; paho takes any other for the end of the protocol."""


class UnknownVersion(RelayError):
    """The broker does not know this version of MQTT."""


@frozen
class Will:
    """The topic on which a broker says what has become of a client, retained."""

    topic: str
    lost: bytes
    """What the broker says when the connection is lost."""


@frozen
class MqttLogin:
    """How a session begins."""

    client_id: str
    user: str | None = field(repr=False, default=None)
    password: str | None = field(repr=False, default=None)
    will: Will | None = None


@define(eq=False)
class PacketCheck:
    """Follows the packets in a broker's bytes; `Undelivered` if one is not to be expected, or too
    large, before it is kept."""

    _left: int = 0
    """Bytes of the packet that is being received."""
    _header: bytearray = field(factory=bytearray)
    """Its type and length, as far as they have come."""
    _reason_in: int | None = None
    """How many bytes are before the reason of a PUBACK, which is being received; None: there is
    none, or it has come."""

    def check(self, data: bytearray) -> int:
        """Returns how many packets began in it. A reason of a PUBACK that the standard does not
        know becomes one that it knows."""
        at, begun = 0, 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._mend_reason(data, at, step)
                self._left -= step
                at += step
                continue
            begun += not self._header
            self._header.append(data[at])
            at += 1
            self._check_header()
        return begun

    def _check_header(self) -> None:
        first, *length = self._header
        flags = _QOS_BITS if first >> 4 == _PUBLISH else 0x0F
        if first >> 4 not in _EXPECTED or first & flags:
            raise Undelivered("the broker sent what is no answer of MQTT")
        if not length or (length[-1] & 0x80 and len(length) < 4):
            return
        size = sum((byte & 0x7F) << (7 * place) for place, byte in enumerate(length))
        if length[-1] & 0x80 or size > MAX_PACKET_BYTES:
            raise Undelivered("the broker sent a packet that is too large")
        self._left = size
        self._reason_in = _PUBACK_REASON_AT if first >> 4 == _PUBACK else None
        self._header.clear()

    def _mend_reason(self, data: bytearray, at: int, step: int) -> None:
        if self._reason_in is None:
            return
        if self._reason_in >= step:
            self._reason_in -= step
            return
        reason, self._reason_in = at + self._reason_in, None
        if data[reason] == _TOO_LARGE:  # as Mosquitto says it
            data[reason] = _BAD_PAYLOAD
        elif data[reason] >= _UNSPECIFIED and data[reason] not in _PUBACK_FAILURES:
            data[reason] = _UNSPECIFIED


@define(eq=False)
class BufferSocket:
    """What paho takes for a socket."""

    received: bytearray = field(factory=bytearray, repr=False)
    to_send: bytearray = field(factory=bytearray, repr=False)
    """It may hold a password, and is in no repr."""

    def recv(self, most: int) -> bytes:
        if not self.received:
            raise BlockingIOError
        data = bytes(self.received[:most])
        del self.received[:most]
        return data

    def send(self, data: bytes) -> int:
        room = MAX_UNTAKEN_BYTES - len(self.to_send)
        if room <= 0:
            raise BlockingIOError
        self.to_send += data[:room]
        return min(room, len(data))

    def setblocking(self, _flag: bool, /) -> None:  # noqa: FBT001 (as a socket has it)
        pass

    def close(self) -> None:
        pass

    def fileno(self) -> int:
        return -1


class BufferClient(Client):
    """paho's client on a `BufferSocket`, instead of a connection that blocks."""

    def __init__(self, sock: BufferSocket, **options: Any) -> None:
        self._buffers = sock
        super().__init__(CallbackAPIVersion.VERSION2, reconnect_on_failure=False, **options)

    def _create_socket(self) -> Any:
        return self._buffers


@define(eq=False)
class MqttSession:
    """One session: from CONNECT to the end of its connection, not to be used again.

    Every method raises `Undelivered`, whose text quotes nothing of the broker's, when the session
    has ended.
    """

    on_acknowledged: Callable[[int, MessageRefused | None], None]
    """Called with the id of a message, and with why it was refused or None."""
    on_message: Callable[[str, bytes], None]
    """Called with what is published on a topic that is subscribed to."""
    is_connected: bool = False
    receive_maximum: int = MAX_UNACKNOWLEDGED_MESSAGES
    """How many messages may be unacknowledged."""
    _most_bytes: int | None = None
    """Of a packet that the broker takes; None: it did not say."""
    _socket: BufferSocket = field(factory=BufferSocket)
    _check: PacketCheck = field(factory=PacketCheck)
    _ended: RelayError | None = None
    _client: BufferClient = field(init=False)

    @classmethod
    def begin(
        cls,
        login: MqttLogin,
        *,
        version: Literal[4, 5],
        on_acknowledged: Callable[[int, MessageRefused | None], None],
        on_message: Callable[[str, bytes], None],
    ) -> MqttSession:
        """A session whose CONNECT is to be sent."""
        session = cls(on_acknowledged, on_message)
        client = BufferClient(
            session._socket,
            client_id=login.client_id,
            protocol=MQTTProtocolVersion(version),
            **({} if version == 5 else {"clean_session": True}),
        )
        session._client = client
        if login.user is not None:
            client.username_pw_set(login.user, login.password)
        if login.will is not None:
            client.will_set(login.will.topic, login.will.lost, qos=1, retain=True)
        client.max_inflight_messages_set(MAX_UNACKNOWLEDGED_MESSAGES)
        client.max_queued_messages_set(2 * MAX_UNACKNOWLEDGED_MESSAGES)
        client.on_connect = session._note_connack
        client.on_publish = session._note_puback
        client.on_message = session._note_message
        client.on_disconnect = session._note_disconnect
        if version == 5:
            asked = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            asked.MaximumPacketSize = MAX_PACKET_BYTES
            asked.ReceiveMaximum = 1
            client.connect("broker", keepalive=MQTT_KEEPALIVE, clean_start=True, properties=asked)
        else:
            client.connect("broker", keepalive=MQTT_KEEPALIVE)
        return session

    def receive(self, data: bytes) -> int:
        """Handle what the broker sent; returns how many packets began in it."""
        checked = bytearray(data)
        packets = self._check.check(checked)
        self._socket.received += checked
        while self._socket.received:
            try:
                code = self._client.loop_read()
            except Exception as error:
                # What paho makes of bytes that it does not expect: struct.error, ValueError, ...
                raise Undelivered("the broker sent what is no answer of MQTT") from error
            self._raise_if_ended(code)
        return packets

    def tick(self) -> None:
        """To be called every few seconds: asks whether the broker is alive."""
        self._raise_if_ended(self._client.loop_misc())

    def take_output(self) -> bytes:
        """What is to be sent."""
        self._client.loop_write()
        data = bytes(self._socket.to_send)
        self._socket.to_send.clear()
        return data

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> int:
        """Publish with QoS 1; returns the id of the message. `MessageRefused` if it is none that
        the broker takes."""
        size = len(topic.encode()) + len(payload) + PUBLISH_OVERHEAD
        if self._most_bytes is not None and size > self._most_bytes:
            raise MessageRefused(
                f"the broker takes no more than {self._most_bytes} bytes at once", is_unfit=True
            )
        try:
            info = self._client.publish(topic, payload, qos=1, retain=retain)
        except ValueError:
            raise MessageRefused("the message does not fit into MQTT", is_unfit=True) from None
        self._raise_if_ended(info.rc)
        return info.mid

    def subscribe(self, topic: str) -> None:
        code, _ = self._client.subscribe(topic, qos=0)
        self._raise_if_ended(code)

    def disconnect(self) -> None:
        """Have the broker forget the will."""
        self._client.disconnect()

    def _raise_if_ended(self, code: MQTTErrorCode) -> None:
        if self._ended is not None:
            raise self._ended
        if code == MQTTErrorCode.MQTT_ERR_KEEPALIVE:
            raise Undelivered("the broker does not answer any more")
        if code:
            raise Undelivered("the connection to the broker ended")

    # -- what paho calls

    def _note_connack(
        self,
        _client: Any,
        _data: Any,
        _flags: Any,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            # MQTT 3.1.1 has reasons of its own, which paho translates.
            if reason.value in _UNKNOWN_VERSION:
                self._ended = UnknownVersion("the broker knows no such version of MQTT")
            else:
                self._ended = Undelivered(f"the broker refused the connection: {_said(reason)}")
            return
        self.is_connected = True
        most = getattr(properties, "ReceiveMaximum", MAX_UNACKNOWLEDGED_MESSAGES)
        self.receive_maximum = max(1, min(most, MAX_UNACKNOWLEDGED_MESSAGES))
        self._most_bytes = getattr(properties, "MaximumPacketSize", None)

    def _note_puback(
        self, _client: Any, _data: Any, message_id: int, reason: ReasonCode, _properties: Any
    ) -> None:
        why: MessageRefused | None = None
        if reason.is_failure:
            said = "its content or its size" if reason.value == _BAD_PAYLOAD else _said(reason)
            is_unfit = reason.value in {_BAD_TOPIC, _BAD_PAYLOAD}
            why = MessageRefused(f"the broker refused the message: {said}", is_unfit=is_unfit)
        self.on_acknowledged(message_id, why)

    def _note_message(self, _client: Any, _data: Any, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            return
        self.on_message(topic, bytes(message.payload))

    def _note_disconnect(
        self, _client: Any, _data: Any, flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        if self._ended is None and flags.is_disconnect_packet_from_server:
            self._ended = Undelivered(f"the broker ended the connection: {_said(reason)}")


def _said(reason: ReasonCode) -> str:
    """The name of a reason: one of the protocol's, never a text of the broker's."""
    return reason.getName().lower()
