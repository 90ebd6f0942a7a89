"""picows on uvloop; a message goes to everybody from one buffer, which saves it a copy for each."""

from __future__ import annotations

import json
import sys
from collections import defaultdict

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_create_server

HEADROOM = 14
"""Bytes before a payload that picows wants for its header."""

topics: defaultdict[str, set[WSTransport]] = defaultdict(set)


class Handler(WSListener):  # type: ignore[misc]  # picows has no types where this is checked
    def __init__(self) -> None:
        self.audience: set[WSTransport] | None = None
        self.subscribed: set[WSTransport] | None = None

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if self.audience is not None:
            buffer = bytearray(HEADROOM + frame.payload_size)
            buffer[HEADROOM:] = frame.get_payload_as_memoryview()
            for viewer in self.audience:
                viewer.send_reuse_external_bytearray(frame.msg_type, buffer, HEADROOM)
            return
        request = json.loads(frame.get_payload_as_bytes())
        if request["type"] == "subscribe":
            self.subscribed = topics[request["streamId"]]
            self.subscribed.add(transport)
        if request["type"] == "register":
            self.audience = topics[request["streamId"]]
        transport.send(WSMsgType.TEXT, b'{"type":"success"}')

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        if self.subscribed is not None:
            self.subscribed.discard(transport)


async def main() -> None:
    port = int(sys.argv[1])
    server = await ws_create_server(lambda _request: Handler(), "127.0.0.1", port)
    print(f"listening on {port}", flush=True)
    await server.serve_forever()


uvloop.run(main())
