"""No token in anything that relay writes or tells, wherever somebody puts one."""

from __future__ import annotations

import json
import secrets
import signal
import sys
from contextlib import suppress
from datetime import timedelta

import pytest
import trio
from attrs import field, frozen

from tests.integration import breakable_relay
from tests.integration.accounts import Accounts
from tests.integration.peers import Message, Peer, login, new_stream_id, open_peer
from tests.integration.raw import PING, REQUEST, TEXT, close, frame, open_raw
from tests.integration.relay_process import RelayProcess, start_relay, until

BREAKABLE = (sys.executable, "-m", breakable_relay.__name__, "serve", "--log-level", "debug")
TELLING = ("/stats", "/ready", "/metrics", "/")


@frozen
class BusyRun:
    """Does all that people do with tokens, and what they should not."""

    relay: RelayProcess
    accounts: Accounts
    tokens: list[str] = field(factory=list)
    """All that were used."""

    def new(self, prefix: str = "") -> str:
        return self.remember(prefix + secrets.token_hex(16))

    def remember(self, token: str) -> str:
        self.tokens.append(token)
        return token

    async def use_tokens_as_meant(self) -> None:
        user = self.remember(self.accounts.session("ann"))
        stream_id = new_stream_id()
        service = self.remember(self.accounts.service(stream_id))
        async with login(self.relay, user) as phone, login(self.relay, service) as detector:
            await phone.register(stream_id)
            await phone.authenticate(user)
            await phone.send_frame(b"a picture")
            await detector.subscribe(stream_id)
            sent = {"type": "alert", "streamId": stream_id, "severity": "low", "message": "m"}
            await detector.ask({**sent, "metadata": {"token": self.new()}, "alertKey": self.new()})
            await phone.receive_type("alert")
            await phone.authenticate(self.new())
        for bearer in (user, service, self.new(), self.new("relay_service_")):
            headers = {"Authorization": f"Bearer {bearer}"}
            for path in ("/streams", "/alerts", "/figures"):
                await self.relay.get(path, headers=headers)
            for body in (b"{", b'{"token": "%s"}' % self.new().encode()):
                await self.relay.get("/alerts", "POST", headers=headers, body=body)
        signed_out = self.remember(self.accounts.session("ann"))
        async with login(self.relay, signed_out) as peer:
            self.accounts.execute("delete from session where token = %s", signed_out)
            await peer.hear_end()
        for wrong in (
            self.new(),
            self.new("relay_service_"),
            self.remember(self.accounts.session("ann", lasts=timedelta(seconds=-1))),
        ):
            async with open_peer(self.relay) as peer:
                assert (await peer.authenticate(wrong))["code"] == "AUTH_FAILED"

    async def put_tokens_into_messages(self) -> None:
        user = self.remember(self.accounts.session("ann"))
        messages: list[Message | str | bytes] = [
            {"type": "auth", "token": [self.new()]},
            {"type": "auth", "token": {"token": self.new()}},
            {"type": "auth", "tokn": self.new()},
            {"type": "auth", "token": self.new(), "id": {"token": self.new()}},
            {"type": self.new()},
            {"type": "register", "streamId": self.new(" ")},
            {"type": "register", "streamId": 5, "id": self.new()},
            {"type": "alert", "streamId": "s", "severity": self.new(), "message": self.new()},
            {"type": "subscribe", "streamId": "s", "consumes": [], "policy": self.new()},
            f'{{"type": "auth", "token": "{self.new()}"',
            f'{{"type": "auth", "token": {self.new()}}}',
            f'{{"type": "auth", "token": "{self.new()}\\ud800"}}',
            self.new(),
            self.new().encode(),
            b"\xff" + self.new().encode(),
        ]
        for message in messages:
            async with open_peer(self.relay) as stranger:
                await stranger.send(message)
                await stranger.receive()
            async with login(self.relay, user) as peer:
                await peer.send(message)
                await peer.receive()
        for big in (self.new() * 640, json.dumps({"type": "auth", "token": self.new() * 640})):
            async with open_raw(self.relay, upgrade=True) as raw:
                await raw.send(frame(TEXT, big.encode()))
                assert (await raw.hear_end())[1] == 1009
            async with login(self.relay, user) as peer:
                await peer.send(big)
                await peer.receive()

    async def put_tokens_into_requests(self) -> None:
        first_line, _, headers = REQUEST.partition(b"\r\n")
        requests = [
            f"GET /{self.new()} HTTP/1.1\r\nHost: relay\r\n\r\n",
            f"GET /ready?{self.new()}={self.new()} HTTP/1.1\r\nHost: relay\r\n\r\n",
            f"GET /stats?session_token={self.new()} HTTP/1.1\r\nHost: relay\r\n\r\n",
            f"GET /stats HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {self.new()}\r\n\r\n",
            f"POST /stats HTTP/1.1\r\nHost: {self.new()}\r\nCookie: a={self.new()}\r\n\r\n",
            f"{self.new()} / HTTP/1.1\r\nHost: relay\r\n\r\n",
            f"GET {self.new()}\r\n\r\n",
            f"auth {self.new()}\r\n\r\n",
            *(
                f"GET {target} HTTP/1.1\r\n{headers.decode()}"
                for target in (
                    f"/streams/register?token={self.new()}",
                    f"/streams/register?{self.new()}",
                    f"/streams/register/{self.new()}",
                    f"//[{self.new()}",
                )
            ),
            *(
                f"{first_line.decode()}\r\n{header}\r\n{headers.decode()}"
                for header in (
                    f"Authorization: Bearer {self.new()}",
                    f"Sec-WebSocket-Protocol: bearer, {self.new()}",
                    f"Sec-WebSocket-Protocol: relay.v1.json, {self.new()}",
                    f"Sec-WebSocket-Extensions: {self.new()}\xff",
                    f"Origin: https://{self.new()}",
                    f"Host: {self.new()}\xff",
                )
            ),
        ]
        for request in requests:
            async with open_raw(self.relay) as client:
                await client.send(request.encode("latin-1"))
                with suppress(trio.BrokenResourceError):
                    await client.stream.receive_some()

    async def put_tokens_into_control_frames(self) -> None:
        for sent in (
            frame(PING, self.new().encode()),
            close(1000, self.new().encode()),
            close(1006, self.new().encode()),
            close(1000, b"\xff" + self.new().encode()),
        ):
            async with open_raw(self.relay, upgrade=True) as client:
                await client.send(sent, close(1000))
                await client.hear_end()

    async def break_verification(self) -> None:
        """While another waits behind, so that both are told."""
        user = self.remember(self.accounts.session("ann"))
        async with login(self.relay, user) as peer, open_peer(self.relay) as stranger:
            await self._break_with(peer, stranger, self.new(breakable_relay.BREAKS))
        async with login(self.relay, user) as peer, open_peer(self.relay) as stranger:
            self.accounts.execute("alter table session rename to session_elsewhere")
            try:
                await self._break_with(peer, stranger, user)
            finally:
                self.accounts.execute("alter table session_elsewhere rename to session")

    async def _break_with(self, peer: Peer, stranger: Peer, token: str) -> None:
        await stranger.send({"type": "auth", "token": token})
        (error,), ending = await stranger.hear_end()
        assert error["code"] == "AUTH_UNAVAILABLE"
        assert ending == (4013, "try again later")
        await until(self._ready)
        assert (await peer.authenticate(token))["code"] == "AUTH_UNAVAILABLE"
        await until(self._ready)

    async def _ready(self) -> bool:
        return (await self.relay.get("/ready")).status == 200


@pytest.mark.parametrize("log_format", ["console", pytest.param("json", marks=pytest.mark.slow)])
async def test_no_token_is_ever_written(
    log_format: str, database_url: str, accounts: Accounts
) -> None:
    with start_relay(
        "--log-format", log_format, command=BREAKABLE, database_url=database_url, flawless=False
    ) as relay:
        run = BusyRun(relay, accounts)
        await run.use_tokens_as_meant()
        await run.put_tokens_into_messages()
        await run.put_tokens_into_requests()
        await run.put_tokens_into_control_frames()
        await run.break_verification()
        told = [(await relay.get(path)).body.decode() for path in TELLING]
        relay.signal(signal.SIGTERM)
        assert await relay.ended() == 0
        audit = [str(row) for row in accounts.execute("select * from relay.audit")]
        everything = "".join([relay.output, *told, *audit])
    assert [token for token in run.tokens if token in everything] == []
    # It did what was to be looked at:
    assert len(run.tokens) > 50
    assert len(audit) > 30
    assert "RuntimeError: verification is broken" in everything
    assert 'relation "public.session" does not exist' in everything.replace('\\"', '"')
