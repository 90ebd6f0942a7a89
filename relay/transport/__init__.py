"""The server's side of bytes and WebSockets; only this room and the client know trio-websocket."""
