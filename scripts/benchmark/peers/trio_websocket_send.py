"""trio-websocket as its documentation has it: `send_message` to one after the other."""

from __future__ import annotations

import json
import sys
from collections import defaultdict

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

topics: defaultdict[str, dict[WebSocketConnection, None]] = defaultdict(dict)


async def handle(request: WebSocketRequest) -> None:
    socket = await request.accept()
    audience, subscribed = None, None
    try:
        while True:
            message = await socket.get_message()
            if audience is not None:
                for viewer in list(audience):
                    try:
                        await viewer.send_message(message)
                    except ConnectionClosed:
                        audience.pop(viewer, None)
                continue
            asked = json.loads(message)
            if asked["type"] == "subscribe":
                subscribed = topics[asked["streamId"]]
                subscribed[socket] = None
            if asked["type"] == "register":
                audience = topics[asked["streamId"]]
            await socket.send_message('{"type":"success"}')
    except ConnectionClosed:
        pass
    finally:
        if subscribed is not None:
            subscribed.pop(socket, None)


async def main() -> None:
    port = int(sys.argv[1])
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_websocket, handle, "127.0.0.1", port, None)
        print(f"listening on {port}", flush=True)


trio.run(main)
