"""A push service on loopback, and the browser behind it: takes what RFC 8030 says and no other,
checks who sends (RFC 8292), and decrypts as the browser would (RFC 8291)."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import re
import socket
import threading
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import trio
from attrs import define, field, frozen
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDH,
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.integration.relay_process import PATIENCE
from tests.integration.web_server import Answer, Request, WebServer, says

MAX_BODY_BYTES = 4096
"""That a push service has to take."""
MAX_TOKEN_SECONDS = 24 * 3600
URGENCIES = {"very-low", "low", "normal", "high"}


def encoded(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def decoded(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def target_id_of(endpoint: str) -> str:
    return f"webpush_{hashlib.sha256(endpoint.encode()).hexdigest()[:32]}"


@frozen
class Pushed:
    """A message as the browser has it."""

    content: dict[str, Any]
    headers: dict[str, str]


@define(eq=False)
class PushBrowser:
    """A browser that has subscribed."""

    endpoint: str
    application_key: str = ""
    """That it has subscribed for."""
    _key: EllipticCurvePrivateKey = field(factory=lambda: generate_private_key(SECP256R1()))
    _auth: bytes = field(factory=lambda: os.urandom(16))
    received: list[Pushed] = field(factory=list)

    @property
    def target_id(self) -> str:
        return target_id_of(self.endpoint)

    @property
    def titles(self) -> list[str]:
        return [each.content["title"] for each in self.received]

    @property
    def bodies(self) -> list[str]:
        return [each.content["body"] for each in self.received]

    @property
    def subscription(self) -> dict[str, Any]:
        """As `PushSubscription.toJSON()` has it."""
        keys = {"p256dh": encoded(self._point), "auth": encoded(self._auth)}
        return {"endpoint": self.endpoint, "expirationTime": None, "keys": keys}

    def decrypt(self, body: bytes) -> bytes:
        """RFC 8291, section 3.4, and RFC 8188 with one record."""
        salt, record_size, id_length = body[:16], int.from_bytes(body[16:20], "big"), body[20]
        sender, sealed = body[21 : 21 + id_length], body[21 + id_length :]
        assert len(sealed) <= record_size
        shared = self._key.exchange(
            ECDH(), EllipticCurvePublicKey.from_encoded_point(SECP256R1(), sender)
        )
        info = b"WebPush: info\0" + self._point + sender
        secret = HKDF(SHA256(), 32, self._auth, info).derive(shared)
        key = HKDF(SHA256(), 16, salt, b"Content-Encoding: aes128gcm\0").derive(secret)
        nonce = HKDF(SHA256(), 12, salt, b"Content-Encoding: nonce\0").derive(secret)
        padded = AESGCM(key).decrypt(nonce, sealed, None).rstrip(b"\0")
        assert padded[-1:] == b"\x02"  # the last record
        return padded[:-1]

    @property
    def _point(self) -> bytes:
        return self._key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


@define(eq=False)
class PushServer:
    """The push service of some browsers."""

    _web: WebServer = field(init=False)
    browsers: dict[str, PushBrowser] = field(factory=dict)
    """By the path of the endpoint."""
    answers: Answer | None = None
    """What it says instead of taking anything."""
    refused: list[str] = field(factory=list)
    """Why it has refused requests itself: none, of a relay that keeps to the RFCs."""

    @property
    def url(self) -> str:
        return self._web.url

    @property
    def requests(self) -> list[Request]:
        return self._web.requests

    def browser(self) -> PushBrowser:
        path = f"/push/{os.urandom(12).hex()}"
        browser = self.browsers[path] = PushBrowser(self.url + path)
        return browser

    async def answer(self, request: Request, stream: trio.abc.Stream) -> None:
        if self.answers is not None:
            await self.answers(request, stream)
            return
        path = request.line.split(" ")[1]
        browser = self.browsers.get(path)
        if browser is None:
            await says(b"", "410 Gone")(request, stream)
            return
        try:
            self._check(request, browser)
            content = json.loads(browser.decrypt(request.body))
        except Exception as why:  # noqa: BLE001 - whatever is wrong with it, the test shall say so
            self.refused.append(repr(why))
            await says(b"", "400 Bad Request")(request, stream)
            return
        browser.received.append(Pushed(content, request.headers))
        await says(b"", "201 Created", f"Location: {self.url}/message/1")(request, stream)

    def _check(self, request: Request, browser: PushBrowser) -> None:
        headers = request.headers
        assert request.line.startswith("POST ")
        assert headers["content-encoding"] == "aes128gcm"
        assert len(request.body) <= MAX_BODY_BYTES
        assert re.fullmatch("[0-9]+", headers["ttl"])
        assert headers["urgency"] in URGENCIES
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,32}", headers.get("topic", "none"))
        key = check_vapid(headers["authorization"], self.url)
        assert key == browser.application_key


def check_vapid(authorization: str, origin: str) -> str:
    """Check the signature and the claims; returns the key of the sender."""
    found = re.fullmatch(
        r"vapid t=([A-Za-z0-9_-]+\.[A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+), k=(.+)", authorization
    )
    assert found, "no VAPID"
    signed, signature, key = found[1], decoded(found[2]), found[3]
    point = EllipticCurvePublicKey.from_encoded_point(SECP256R1(), decoded(key))
    numbers = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    point.verify(encode_dss_signature(*numbers), signed.encode(), ECDSA(SHA256()))
    header, claims = (json.loads(decoded(each)) for each in signed.split("."))
    assert header == {"typ": "JWT", "alg": "ES256"}
    assert claims["aud"] == origin
    assert 0 < claims["exp"] - time.time() <= MAX_TOKEN_SECONDS
    return key


def free_port() -> int:
    """One that nothing listens on."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port: int = opened.getsockname()[1]
        return port


@asynccontextmanager
async def open_push_service(port: int = 0) -> AsyncIterator[PushServer]:
    """One that answers until the block ends; a request that it had to refuse fails the test."""
    service = PushServer()
    async with trio.open_nursery() as nursery:
        service._web = WebServer(nursery, None, service.answer, port=port)
        await service._web.start()
        yield service
        nursery.cancel_scope.cancel()
    assert service.refused == []


@define(eq=False)
class PushThread:
    """A push service in a thread, for tests without Trio."""

    _service: PushServer

    @property
    def url(self) -> str:
        return self._service.url

    def browser(self) -> PushBrowser:
        return self._service.browser()

    def wait(self, condition: Callable[[], bool]) -> None:
        """Until something is so."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, self._service.refused
            time.sleep(0.02)


@contextmanager
def open_push_thread() -> Iterator[PushThread]:
    """One that answers until the block ends."""
    opened: queue.SimpleQueue[tuple[PushServer, trio.lowlevel.TrioToken, trio.CancelScope]]
    opened = queue.SimpleQueue()

    async def serve() -> None:
        with trio.CancelScope() as life:
            async with open_push_service() as service:
                opened.put((service, trio.lowlevel.current_trio_token(), life))
                await trio.sleep_forever()

    thread = threading.Thread(target=trio.run, args=[serve])
    thread.start()
    service, token, life = opened.get()
    try:
        yield PushThread(service)
    finally:
        token.run_sync_soon(life.cancel)
        thread.join()
    assert service.refused == []
