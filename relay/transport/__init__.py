"""The server's side of bytes and WebSockets; only this room knows trio-websocket."""
