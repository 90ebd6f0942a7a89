"""What comes before the frames of a WebSocket: request heads, and the opening handshake."""
