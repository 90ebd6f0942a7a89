"""A connection to an MQTT broker that is kept, and made again after it was lost.

The broker's address is checked as that of a webhook is (`checked_addresses.py`), since operators
may pass on what users ask for. Nothing that a broker does, or fails to do, is noticed by more than
those who wait for it: what is held for it is bounded, and so is what it may send.
"""

from __future__ import annotations

import random
import re
import secrets
import ssl
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from importlib import import_module
from ipaddress import ip_network
from typing import TYPE_CHECKING, Literal, NoReturn
from urllib.parse import urlsplit

import structlog
import trio
from attrs import define, field, frozen

from relay.concurrency.backoff import Backoff
from relay.concurrency.happy_eyeballs import connect_first
from relay.concurrency.wakeup import Wakeup
from relay.errors import ConfigError, RelayError
from relay.outgoing.checked_addresses import (
    MAX_LOOKUPS,
    allowed_alone,
    look_up_allowed,
    public_or_allowed,
)
from relay.outgoing.mqtt_refusal import MessageRefused
from relay.outgoing.public_networks import IpAddress, IpNetwork
from relay.outgoing.webhook_client import MAX_URL_LENGTH, Undelivered

if TYPE_CHECKING:
    from relay.outgoing.mqtt_session import MqttSession

SESSION_MODULE = "relay.outgoing.mqtt_session"
PLAIN_PORT, TLS_PORT = 1883, 8883
BROKER_DIAL_TIMEOUT = 5.0
"""Seconds to connect, with TLS."""
CONNACK_TIMEOUT = 3.0
"""Seconds for the broker to accept the session. With the one above less than an attempt to deliver
has, so that it says what is wrong."""
PUBACK_TIMEOUT = 8.0
"""Seconds for a message to be acknowledged; then the connection is given up."""
BROKER_WRITE_TIMEOUT = 15.0
"""Seconds to send what waits."""
BROKER_GOODBYE_TIMEOUT = 1.0
"""Seconds to say goodbye when relay stops."""
TICK_INTERVAL = 5.0
FIRST_BROKER_BACKOFF, MAX_BROKER_BACKOFF = 1.0, 60.0
"""Seconds from a failure to the next attempt, unless somebody wants to publish."""
BROKER_STABLE_TIME = 30.0
"""Seconds for which a connection has to last before the attempts begin again with the first pause:
some brokers accept everybody, and hang up."""
BROKER_READ_BYTES = 512
"""At once: many packets fit into few bytes, and others want their turn."""
FLOOD_PACKETS, FLOOD_BYTES, FLOOD_SECONDS = 2000, 256 * 1024, 10.0
"""More packets and bytes in that time than a broker has to send, beside one packet for each
message."""
MAX_PUBACK_BYTES = 1024
"""Of the answer to a message, with a text that nobody reads."""
STATUS_PACE = 1.0
"""Seconds between two corrections of the status at least."""
NO_PUBACK = "the broker does not acknowledge messages"
STATUS_ONLINE, STATUS_OFFLINE = b"online", b"offline"

Dial = Callable[[], Awaitable[trio.abc.Stream]]

log = structlog.get_logger()


@frozen
class BrokerAddress:
    """Where a broker is, and what it is told."""

    host: str
    port: int
    encrypted: bool
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    authority: str | None = field(default=None, repr=False)
    """The certificates in PEM that its own has to be issued by; None: those of the system."""


def parse_broker_url(url: str, *, plain: bool = True) -> BrokerAddress:
    """The address in a URL; `ConfigError` unless it is one, which shows none of it. `plain` allows
    mqtt:// as well."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not re.fullmatch(r"[\x21-\x7e]+", url) or len(url) > MAX_URL_LENGTH:
        raise ConfigError("expected the URL of a broker, such as mqtts://broker.example.org")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            "leave user and password out of the URL: give them in a file or in the environment"
        )
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ConfigError("the URL of a broker ends with its host or port")
    if parts.scheme != "mqtts" and not (plain and parts.scheme == "mqtt"):
        raise ConfigError(
            "the URL must begin with mqtts://; mqtt:// is only for networks in webhook_networks"
        )
    encrypted = parts.scheme == "mqtts"
    return BrokerAddress(host, port or (TLS_PORT if encrypted else PLAIN_PORT), encrypted)


@define(eq=False, repr=False)
class BrokerDialer:
    """Connects to brokers at addresses that are allowed."""

    _networks: Sequence[IpNetwork]
    """May be reached as well as the public internet, and alone without TLS."""
    _lookups: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(MAX_LOOKUPS))

    @classmethod
    def to(cls, networks: Sequence[str]) -> BrokerDialer:
        return cls(tuple(map(ip_network, networks)))

    async def dial(self, address: BrokerAddress) -> trio.abc.Stream:
        """A connection; `Undelivered` if none can be made."""
        allow = public_or_allowed if address.encrypted else allowed_alone
        ips = await look_up_allowed(address.host, allow(self._networks), self._lookups)

        async def connect(ip: IpAddress) -> trio.SocketStream | None:
            try:
                return await trio.open_tcp_stream(str(ip), address.port)
            except OSError:
                return None

        stream = await connect_first([partial(connect, ip) for ip in ips])
        if stream is None:
            raise Undelivered("the broker cannot be connected to")
        if not address.encrypted:
            return stream
        try:
            return await _encrypted(stream, address)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise


async def _encrypted(stream: trio.abc.Stream, address: BrokerAddress) -> trio.abc.Stream:
    # It reads many certificates: not in the loop.
    make_context = partial(ssl.create_default_context, cadata=address.authority)
    context = await trio.to_thread.run_sync(make_context)
    by_tls = trio.SSLStream(stream, context, server_hostname=address.host)
    try:
        await by_tls.do_handshake()
    except trio.BrokenResourceError as error:
        if isinstance(error.__cause__, ssl.SSLCertVerificationError):
            why = f"its certificate is not accepted: {error.__cause__.verify_message}"
            raise Undelivered(why) from None
        raise Undelivered("no TLS with the broker") from None
    return by_tls


@define(eq=False, repr=False)
class PendingMessage:
    """A message that is not acknowledged yet."""

    since: float = field(factory=trio.current_time)
    done: trio.Event = field(factory=trio.Event)
    refused: MessageRefused | None = None


@define(eq=False, repr=False)
class BrokerConnection:
    """One connection, until it is lost."""

    _stream: trio.abc.Stream
    accepted: trio.Event = field(factory=trio.Event)
    why_lost: RelayError | None = None
    status_heard: Wakeup = field(factory=Wakeup)
    status_is_wrong: bool = False
    """Whether the last status that the broker told of says that relay is not there."""
    _session: MqttSession = field(init=False)
    _pending: dict[int, PendingMessage] = field(factory=dict)
    _window: trio.Semaphore = field(factory=lambda: trio.Semaphore(1))
    _to_write: Wakeup = field(factory=Wakeup)
    _scope: trio.CancelScope = field(factory=trio.CancelScope)
    _packets: int = 0
    _bytes: int = 0
    _counted_since: float = field(factory=trio.current_time)

    def begin(self, session: MqttSession) -> None:
        self._session = session

    async def run(self, also: Callable[[], Awaitable[None]]) -> None:
        """Serve the connection, with a task of the caller's beside it, until it is lost: `why_lost`
        says why."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                for task in (self._read, self._write, self._tick, also):
                    nursery.start_soon(self._until_lost, task)

    async def publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Return when the broker has acknowledged the message; `MessageRefused` if it takes others
        but not this one, `Undelivered` otherwise."""
        await self._window.acquire()
        try:
            self._raise_if_lost()
            message_id = self._session.publish(topic, payload, retain=retain)
        except BaseException:
            self._window.release()
            raise
        # From now on it has a place until it is acknowledged, also when nobody waits for it.
        message = self._pending[message_id] = PendingMessage()
        self._packets -= 1
        self._bytes -= MAX_PUBACK_BYTES
        self._to_write.set()
        with trio.move_on_after(PUBACK_TIMEOUT) as waiting:
            await message.done.wait()
        if waiting.cancelled_caught:
            self.end(Undelivered(NO_PUBACK))
        self._raise_if_lost()
        if message.refused is not None:
            raise message.refused

    def subscribe(self, topic: str) -> None:
        self._session.subscribe(topic)
        self._to_write.set()

    async def say_goodbye(self, topic: str | None) -> None:
        """End the session, so that the broker does not take it for lost."""
        if not self.accepted.is_set() or self.why_lost is not None:
            return
        try:
            if topic is not None:
                self._session.publish(topic, STATUS_OFFLINE, retain=True)
            self._session.disconnect()
            await self._stream.send_all(self._session.take_output())
        except (Undelivered, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it is lost: the will says the same

    def acknowledge(self, message_id: int, refused: MessageRefused | None) -> None:
        message = self._pending.pop(message_id, None)
        if message is not None:
            message.refused = refused
            message.done.set()
            self._window.release()

    def end(self, why: RelayError) -> None:
        """Give the connection up."""
        if self.why_lost is None:
            self.why_lost = why
            for message in self._pending.values():
                message.done.set()
                self._window.release()
            self._pending.clear()
            self._scope.cancel()

    def _raise_if_lost(self) -> None:
        if self.why_lost is not None:
            raise Undelivered(str(self.why_lost))

    async def _until_lost(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except RelayError as why:
            self.end(why)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.end(Undelivered("the connection to the broker broke"))

    async def _read(self) -> None:
        while data := await self._stream.receive_some(BROKER_READ_BYTES):
            self._count(self._session.receive(bytes(data)), len(data))
            if self._session.is_connected and not self.accepted.is_set():
                for _ in range(self._session.receive_maximum - 1):
                    self._window.release()
                self.accepted.set()
            self._to_write.set()
            await trio.lowlevel.checkpoint()
        raise Undelivered("the broker closed the connection")

    def _count(self, packets: int, size: int) -> None:
        now = trio.current_time()
        if now - self._counted_since > FLOOD_SECONDS:
            self._packets, self._bytes, self._counted_since = 0, 0, now
        self._packets += packets
        self._bytes += size
        if self._packets > FLOOD_PACKETS or self._bytes > FLOOD_BYTES:
            raise Undelivered("the broker sends more than it has reason to")

    async def _write(self) -> None:
        while True:
            data = self._session.take_output()
            if not data:
                await self._to_write.wait()
                continue
            with trio.move_on_after(BROKER_WRITE_TIMEOUT) as writing:
                await self._stream.send_all(data)
            if writing.cancelled_caught:
                raise Undelivered("the broker reads nothing")

    async def _tick(self) -> None:
        with trio.move_on_after(CONNACK_TIMEOUT):
            await self.accepted.wait()
        if not self.accepted.is_set():
            raise Undelivered("the broker does not answer")
        while True:
            await trio.sleep(TICK_INTERVAL)
            self._session.tick()
            self._to_write.set()
            oldest = next(iter(self._pending.values()), None)
            if oldest is not None and trio.current_time() - oldest.since > PUBACK_TIMEOUT:
                raise Undelivered(NO_PUBACK)


@define(eq=False, repr=False)
class MqttBroker:
    """One broker, to be published to."""

    _dial: Dial
    _user: str | None = field(default=None, repr=False)
    _password: str | None = field(default=None, repr=False)
    status_topic: str | None = None
    """Where it says whether this relay is there; None: nowhere."""
    on_connected: Callable[[], None] = lambda: None
    connections: int = 0
    """How many were made: at each one, what the broker retained may be gone."""
    _client_id: str = field(factory=lambda: f"relay-{secrets.token_hex(8)}")
    _version: Literal[4, 5] = 5
    _connection: BrokerConnection | None = None
    _why_not: str = "not connected"
    _has_warned: bool = False
    _outcome: trio.Event = field(factory=trio.Event)
    """Of the attempt to connect that is under way, or comes next."""
    _wanted: Wakeup = field(factory=Wakeup)

    async def run(self) -> NoReturn:
        """Keep a connection."""
        backoff = Backoff(FIRST_BROKER_BACKOFF, MAX_BROKER_BACKOFF)
        while True:
            try:
                if not await self._connect_and_serve(backoff):
                    continue
            except RelayError as why:
                self._why_not = str(why)
            except Exception as bug:
                log.exception("mqtt connection failed")
                self._why_not = f"relay failed: {type(bug).__name__}"
            self._settle()
            self._wanted = Wakeup()
            with trio.move_on_after(backoff.next() * random.uniform(0.5, 1.5)):  # noqa: S311
                await self._wanted.wait()

    @property
    def is_connected(self) -> bool:
        return self._connection is not None

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Return when the broker has acknowledged the message; `MessageRefused` if it takes others
        but not this one, `Undelivered` otherwise, at once if it can be connected to no more. The
        caller sets the deadline."""
        connection = await self._connected()
        await connection.publish(topic, payload, retain=retain)

    async def reach(self) -> None:
        """Return when the broker is connected to; `Undelivered` if that failed."""
        await self._connected()

    async def _connected(self) -> BrokerConnection:
        if self._connection is None:
            self._wanted.set()
            await self._outcome.wait()
        if self._connection is None:
            raise Undelivered(self._why_not)
        return self._connection

    async def _connect_and_serve(self, backoff: Backoff) -> bool:
        """Serve a connection until it is lost, which `Undelivered` explains; False if the broker
        wants to be asked again at once."""
        if SESSION_MODULE not in sys.modules:  # it takes a while to load
            await trio.to_thread.run_sync(import_module, SESSION_MODULE)
        from relay.outgoing.mqtt_session import UnknownVersion  # noqa: PLC0415 (of an extra)

        with trio.move_on_after(BROKER_DIAL_TIMEOUT) as dialing:
            stream = await self._dial()
        if dialing.cancelled_caught:
            raise Undelivered("the broker cannot be connected to in time")
        connection, began = BrokerConnection(stream), trio.current_time()
        try:
            await self._serve(connection)
        finally:
            with trio.move_on_after(BROKER_GOODBYE_TIMEOUT, shield=True):
                await connection.say_goodbye(self.status_topic)
            with trio.move_on_after(0, shield=True):
                await trio.aclose_forcefully(stream)
            connection.end(Undelivered("relay has closed the connection to the broker"))
            self._connection = None
        why = connection.why_lost
        assert why is not None
        if connection.accepted.is_set() and trio.current_time() - began >= BROKER_STABLE_TIME:
            backoff.reset()
        asked = self._version
        # Some old brokers hang up on a version that they do not know. But one that was only busy
        # is spoken to in the newer one again: in the older one it does not say what it refuses.
        self._version = 4 if asked == 5 and not connection.accepted.is_set() else 5
        if isinstance(why, UnknownVersion) and asked == 5:
            return False
        raise why

    async def _serve(self, connection: BrokerConnection) -> None:
        from relay.outgoing.mqtt_session import (  # noqa: PLC0415 (of an extra)
            MqttLogin,
            MqttSession,
            Will,
        )

        def note(topic: str, payload: bytes) -> None:
            if topic == self.status_topic:
                connection.status_is_wrong = payload == STATUS_OFFLINE
                connection.status_heard.set()

        topic = self.status_topic
        will = None if topic is None else Will(topic, STATUS_OFFLINE)
        login = MqttLogin(self._client_id, self._user, self._password, will)
        connection.begin(
            MqttSession.begin(
                login,
                version=self._version,
                on_acknowledged=connection.acknowledge,
                on_message=note,
            )
        )

        async def when_accepted() -> None:
            await connection.accepted.wait()
            self._connection = connection
            self.connections += 1
            self._settle()
            self.on_connected()
            await self._keep_status(connection)

        await connection.run(when_accepted)

    async def _keep_status(self, connection: BrokerConnection) -> None:
        """Tell that relay is there, and again when another process of it has gone."""
        if self.status_topic is None:
            return
        connection.subscribe(self.status_topic)
        await self._say_online(connection, self.status_topic)
        while True:
            await connection.status_heard.wait()
            if not connection.status_is_wrong:
                continue
            await trio.sleep(random.uniform(0, 0.5))  # noqa: S311
            if connection.status_is_wrong:  # no other process has said it meanwhile
                await self._say_online(connection, self.status_topic)
                await trio.sleep(STATUS_PACE)

    async def _say_online(self, connection: BrokerConnection, topic: str) -> None:
        connection.status_is_wrong = False
        try:
            await connection.publish(topic, STATUS_ONLINE, retain=True)
        except MessageRefused as why:  # alerts do not depend on it
            if not self._has_warned:
                self._has_warned = True
                log.warning("mqtt status not published", topic=topic, why=str(why))

    def _settle(self) -> None:
        """Tell those who wait what came of the attempt."""
        self._outcome.set()
        if self._connection is None:
            self._outcome = trio.Event()
