"""Clients that nobody here wrote, and that of the guide which mobile apps are written from."""

from __future__ import annotations

import base64
import json
import os
import time

import pytest
import trio
from websockets.exceptions import ConnectionClosed

from tests.integration.accounts import Accounts
from tests.integration.node import run_script
from tests.integration.peers import login, new_stream_id, open_peer
from tests.integration.relay_process import PATIENCE, RelayProcess

JPEG = base64.b64encode(b"\xff\xd8\xff\xe0 a picture \xff\xd9").decode()


# -- websockets, in Python


async def test_a_phone_streams_as_in_the_guide(relay: RelayProcess, accounts: Accounts) -> None:
    token = accounts.session("ann")
    async with (
        open_peer(relay, "/streams/register") as phone,
        login(relay, token, path="/streams/subscribe") as viewer,
        login(relay, accounts.service("*")) as detector,
    ):
        await phone.send({"type": "auth", "token": token})
        first = await phone.receive()
        assert first["type"] == "success"
        assert first["message"] == "Authentication successful"

        stream_id = f"mobile-{time.time_ns() // 1_000_000}"
        await phone.send(
            {
                "type": "register",
                "streamId": stream_id,
                "clientType": "mobile",
                "produces": ["video-frame"],
                "consumes": ["alert"],
            }
        )
        registered = await phone.receive()
        assert registered["type"] == "success"
        assert registered["message"] == f"Registration successful. Stream ID: {stream_id}"

        await viewer.subscribe(stream_id)
        taken_at = time.time_ns() // 1_000_000
        await phone.send({"type": "video-frame", "data": JPEG, "timestamp": taken_at})
        frame = await viewer.receive_type("video-frame")
        assert (frame["streamId"], frame["data"], frame["timestamp"]) == (stream_id, JPEG, taken_at)

        alert = {"type": "alert", "streamId": stream_id, "severity": "high", "message": "Smoke"}
        assert (await detector.ask(alert))["code"] == "ALERT_ACCEPTED"
        for peer in (phone, viewer):
            heard = await peer.receive_type("alert")
            assert (heard["severity"], heard["message"]) == ("high", "Smoke")


async def test_a_wrong_token_is_refused_as_in_the_guide(relay: RelayProcess) -> None:
    async with open_peer(relay) as phone:
        await phone.send({"type": "auth", "token": "invalid_token"})
        (error,), close = await phone.hear_end()
    assert (error["type"], error["code"], error["message"]) == (
        "error",
        "AUTH_FAILED",
        "Invalid or expired token",
    )
    assert close == (1008, "Authentication failed")


async def test_an_operation_before_auth_is_refused_as_in_the_guide(
    relay: RelayProcess, accounts: Accounts
) -> None:
    async with open_peer(relay) as phone:
        await phone.send({"type": "register", "streamId": new_stream_id()})
        error = await phone.receive()
        assert (error["type"], error["code"], error["message"]) == (
            "error",
            "AUTH_REQUIRED",
            "Must authenticate first",
        )
        assert (await phone.authenticate(accounts.session()))["code"] == "AUTHENTICATED"


async def test_a_frame_in_fragments_arrives_whole(relay: RelayProcess, accounts: Accounts) -> None:
    token, stream_id = accounts.session(), new_stream_id()
    data = base64.b64encode(os.urandom(1 << 20)).decode()
    text = json.dumps({"type": "video-frame", "data": data})
    async with login(relay, token) as phone, login(relay, token) as viewer:
        await phone.register(stream_id)
        await viewer.subscribe(stream_id)
        await phone.socket.send([text[:10], text[10:100_000], text[100_000:]])
        assert (await viewer.receive_type("video-frame"))["data"] == data


async def test_pings_of_a_client_are_answered(relay: RelayProcess, accounts: Accounts) -> None:
    async with login(relay, accounts.session()) as phone:
        with trio.fail_after(PATIENCE):
            await (await phone.socket.ping()).wait()


async def test_a_client_that_closes_is_answered_in_kind(
    relay: RelayProcess, accounts: Accounts
) -> None:
    async with login(relay, accounts.session()) as phone:
        await phone.socket.aclose(1000, "bye")
        with pytest.raises(ConnectionClosed):
            await phone.receive()
        assert phone.socket.close_code == 1000


# -- ws, on Node


async def test_the_client_of_the_guide_streams_on_node(
    node: str, relay: RelayProcess, accounts: Accounts
) -> None:
    token = accounts.session("ann")
    async with run_script(node, relay, token, "phone.js") as phone:
        await phone.line("Authenticated successfully")
        registered = await phone.received("success")
        stream_id = registered["streamId"]
        assert stream_id.startswith("mobile-")

        async with (
            run_script(node, relay, token, "viewer.js", stream_id) as viewer,
            login(relay, token) as other_viewer,
            login(relay, accounts.service(stream_id)) as detector,
        ):
            assert (await viewer.received("error"))["code"] == "AUTH_REQUIRED"
            assert (await viewer.received("success"))["code"] == "AUTHENTICATED"
            assert (await viewer.received("success"))["code"] == "SUBSCRIBED"
            await other_viewer.subscribe(stream_id)

            await phone.write(JPEG)
            assert (await viewer.received("video-frame"))["data"] == JPEG
            frame = await other_viewer.receive_type("video-frame")
            assert frame["data"] == JPEG
            assert 0 <= frame["receivedAt"] - frame["timestamp"] < PATIENCE * 1000

            alert = {"type": "alert", "streamId": stream_id, "severity": "high", "message": "Smoke"}
            assert (await detector.ask(alert))["code"] == "ALERT_ACCEPTED"
            assert await phone.line("Security alert:") == "Smoke"
            assert (await viewer.received("alert"))["message"] == "Smoke"


async def test_the_client_of_the_guide_is_refused_on_node(node: str, relay: RelayProcess) -> None:
    async with run_script(node, relay, "invalid_token", "phone.js") as phone:
        assert await phone.line("Auth failed:") == "Invalid or expired token"
        assert await phone.line("rejected:") == "Invalid or expired token"
        assert await phone.line("closed:") == "1008 Authentication failed"
