"""`broadcast` of websockets on uvloop, as its guide to broadcasting has it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import defaultdict

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed

topics: defaultdict[str, set[ServerConnection]] = defaultdict(set)


async def handle(socket: ServerConnection) -> None:
    audience, subscribed = None, None
    try:
        async for message in socket:
            if audience is not None:
                broadcast(audience, message)
                continue
            request = json.loads(message)
            if request["type"] == "subscribe":
                subscribed = topics[request["streamId"]]
                subscribed.add(socket)
            if request["type"] == "register":
                audience = topics[request["streamId"]]
            await socket.send('{"type":"success"}')
    except ConnectionClosed:  # without a Close
        pass
    finally:
        if subscribed is not None:
            subscribed.discard(socket)


async def main() -> None:
    port = int(sys.argv[1])
    async with serve(
        handle, "127.0.0.1", port, compression=None, max_size=1 << 24, ping_interval=None
    ):
        print(f"listening on {port}", flush=True)
        await asyncio.get_running_loop().create_future()


uvloop.run(main())
