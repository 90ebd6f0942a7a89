"""How a coordinator and an agent prove who they are, before the first message.

Each pins the other's certificate by its SHA-256. The coordinator sends a line with its certificate
in the clear, since the agent's TLS has to be given the one that it accepts. The agent says nothing
to others; to this one it answers with such a line of its own, and a handshake of TLS 1.3 follows in
which both show these certificates. Certificates are no secrets.
"""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import ssl

import trio
from attrs import frozen

from relay.client.dial import open_plain
from relay.client.errors import DialFailed
from relay.cluster.links.proof import LinkRefused
from relay.errors import ConfigError, RelayError
from relay.load.run.wire import WIRE_VERSION
from relay.transport.pinned_key import BadCertificate, PinnedKey, der_of

MAX_LINE_BYTES = 2048
DIAL_AGENT_TIMEOUT = 10.0
_LINE = re.compile(rb"relay-load ([0-9]{1,9}) ([A-Za-z0-9+/]+={0,2})\n")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


class AgentRefused(RelayError):
    """There is no connection to an agent."""


@frozen
class AgentAddress:
    """Where an agent is, and the SHA-256 of its certificate in hexadecimal."""

    name: str
    """`HOST:PORT`."""
    fingerprint: str

    @classmethod
    def parse(cls, text: str) -> AgentAddress:
        """Read `HOST:PORT=FINGERPRINT`, as the agent prints it; `ConfigError`."""
        name, equals, fingerprint = text.partition("=")
        if not re.fullmatch(r"(\[[0-9a-fA-F:.%]+\]|[^\s:@/\[\]]+):[0-9]{1,5}", name):
            raise ConfigError(f"--agents: expected HOST:PORT=FINGERPRINT, not {text!r}")
        if not equals:
            raise ConfigError(
                f"--agents: {name} needs the fingerprint that the agent printed when it started:"
                f" {name}=FINGERPRINT"
            )
        return cls(name, parse_fingerprint(fingerprint, "--agents"))


def parse_fingerprint(text: str, option: str) -> str:
    """64 hexadecimal digits, perhaps with colons; `ConfigError`."""
    found = text.replace(":", "").lower()
    if not _FINGERPRINT.fullmatch(found):
        raise ConfigError(f"{option}: a fingerprint has 64 hexadecimal digits, not {text!r}")
    return found


def fingerprint_of(key: PinnedKey) -> str:
    """Under which others pin a key."""
    return _digest(der_of(key.certificate_pem))


def first_line(key: PinnedKey, version: int = WIRE_VERSION) -> bytes:
    certificate = base64.b64encode(der_of(key.certificate_pem))
    return b"relay-load %d %s\n" % (version, certificate)


async def accept_coordinator(
    connection: socket.socket, key: PinnedKey, coordinators: frozenset[str]
) -> trio.SSLStream[trio.SocketStream]:
    """Let the one who called prove to be one of these coordinators; `LinkRefused`, and nothing was
    said to a stranger. The caller sets the deadline, and closes the connection in that case."""
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(connection))
    try:
        version, certificate = parse_line(await _read_line(stream))
        if _digest(certificate) not in coordinators:
            raise LinkRefused(f"{_digest(certificate)} is not a --coordinator")
        await stream.send_all(first_line(key))
        if version != WIRE_VERSION:
            raise LinkRefused(f"its version of load tests is {version}, not {WIRE_VERSION}")
        context = key.server_context(ssl.DER_cert_to_PEM_cert(certificate))
        encrypted = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        await encrypted.do_handshake()
    except BadCertificate:
        raise LinkRefused("its certificate is none") from None
    except (trio.BrokenResourceError, trio.ClosedResourceError) as problem:
        raise LinkRefused(f"it gave up, or does not have the key: {_why(problem)}") from None
    if encrypted.getpeercert(binary_form=True) != certificate:
        raise LinkRefused("it has another certificate than it said")
    return encrypted


async def dial_agent(address: AgentAddress, key: PinnedKey) -> trio.abc.Stream:
    """Connect to an agent, and prove both; `AgentRefused`."""
    try:
        with trio.fail_after(DIAL_AGENT_TIMEOUT):
            stream, _, _ = await open_plain(f"ws://{address.name}")
            try:
                return await _introduce(stream, address, key)
            except BaseException:
                await trio.aclose_forcefully(stream)
                raise
    except trio.TooSlowError:
        raise AgentRefused(
            f"the agent {address.name} did not answer in {DIAL_AGENT_TIMEOUT:g} s"
        ) from None
    except DialFailed as problem:
        raise AgentRefused(f"the agent {address.name} cannot be reached: {problem}") from None


async def _introduce(
    stream: trio.abc.Stream, address: AgentAddress, key: PinnedKey
) -> trio.abc.Stream:
    name = address.name
    try:
        await stream.send_all(first_line(key))
        line = await _read_line(stream)
    except (LinkRefused, trio.BrokenResourceError):
        raise AgentRefused(
            f"{name} ends the connection without a word: an agent there needs"
            f" --coordinator {fingerprint_of(key)}"
        ) from None
    try:
        version, certificate = parse_line(line)
        context = key.client_context(ssl.DER_cert_to_PEM_cert(certificate))
    except (LinkRefused, BadCertificate):
        raise AgentRefused(f"{name} is no agent") from None
    if _digest(certificate) != address.fingerprint:
        raise AgentRefused(
            f"{name} is another agent: its fingerprint is {_digest(certificate)}, not"
            f" {address.fingerprint}"
        )
    if version != WIRE_VERSION:
        raise AgentRefused(
            f"the agent {name} speaks version {version} of load tests, this relay {WIRE_VERSION}:"
            " install the same relay on all machines"
        )
    encrypted = trio.SSLStream(stream, context, https_compatible=True)
    try:
        await encrypted.do_handshake()
    except (trio.BrokenResourceError, trio.ClosedResourceError) as problem:
        raise AgentRefused(f"{name} does not prove to be the agent: {_why(problem)}") from None
    if encrypted.getpeercert(binary_form=True) != certificate:
        raise AgentRefused(f"{name} has another certificate than it said")
    return encrypted


def parse_line(line: bytes) -> tuple[int, bytes]:
    """The version and the certificate (DER) in a first line; `LinkRefused`."""
    found = _LINE.fullmatch(line)
    try:
        if found is not None:
            return int(found[1]), base64.b64decode(found[2], validate=True)
    except ValueError:
        pass
    raise LinkRefused("it does not begin like a coordinator")


async def _read_line(stream: trio.abc.ReceiveStream) -> bytes:
    """Nothing may follow the line before it is answered; `LinkRefused`."""
    line = b""
    while b"\n" not in line:
        data = await stream.receive_some(MAX_LINE_BYTES - len(line))
        line += data
        if not data or len(line) >= MAX_LINE_BYTES:
            raise LinkRefused("it does not begin with a line")
    return line


def _digest(certificate: bytes) -> str:
    return hashlib.sha256(certificate).hexdigest()


def _why(problem: BaseException) -> str:
    match problem.__cause__:
        case ssl.SSLError(reason=str(words)):
            return words.replace("_", " ").lower()
    return "the connection ended"
